"""A library that measures the curvature factors of a network; it knows nothing of runs or files."""
