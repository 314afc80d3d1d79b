"""Encoders of texts, and how the vectors of a long document are made."""
