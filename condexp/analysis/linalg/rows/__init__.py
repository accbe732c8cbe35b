"""The kinds of rows of a second moment: dense, with a bias column, pixels, stride-1 patches."""
