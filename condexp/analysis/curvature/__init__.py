"""Hessian and Gauss–Newton matrices of a network, by their products with vectors."""
