"""Networks, which know nothing of measuring.

A file that defines ``Spec`` and ``build`` is a model, found by its name; the others hold parts.
"""
