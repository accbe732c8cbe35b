"""Benchmarks: ratios of two ways to do the same, measured alternately in one process."""
