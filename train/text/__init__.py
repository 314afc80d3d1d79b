"""Texts for pretraining."""
