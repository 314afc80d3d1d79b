"""Rankings as files: read, scored, written, shown."""
