"""Retrieval tasks: where texts, queries and judgements come from."""
