"""Checkpoints of the research code, converted."""
