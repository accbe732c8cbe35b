"""Linear algebra: second moments, Gram matrices, eigenvalues, spectra, Kronecker products."""
