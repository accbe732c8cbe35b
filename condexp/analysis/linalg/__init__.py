"""Tensors in, numbers out: second moments, patches, spectra and Kronecker products of spectra."""
