"""One file a figure, drawn from stored files alone."""
