"""Retrieval tasks: where texts, queries and judgments come from."""
