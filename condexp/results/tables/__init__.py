"""mean ± std (n) over runs, paired differences, published values; rich, markdown, LaTeX, CSV."""
