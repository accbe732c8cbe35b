"""Numbers from tensors: moments, spectra, Kronecker products. No I/O, no modules."""
