"""Results beside the paper's tables, as Markdown and as one self-contained HTML page."""
