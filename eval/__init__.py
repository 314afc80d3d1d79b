"""Evaluation of embedding models on retrieval tasks; every model is an encoder, whoever made it."""
