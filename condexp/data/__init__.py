"""Data sets, transforms and batches.

A file that defines ``Spec`` and ``load`` is a data set, found by its name; the others hold parts.
"""
