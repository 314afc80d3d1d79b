"""From checkpoints to Hub repositories: convert, export, describe."""
