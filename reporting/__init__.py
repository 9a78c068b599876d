"""What the runs of an experiment came to, as one page, as Markdown and as CSV."""
