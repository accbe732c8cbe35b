"""A run, a sweep or the paper as one self-contained HTML page."""
