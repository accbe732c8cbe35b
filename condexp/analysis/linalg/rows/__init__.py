"""The kinds of rows a second moment can be taken of: dense, with a bias column, pixels, patches of stride 1."""
