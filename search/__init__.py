"""Search: from a folder of files to the passages that answer."""
