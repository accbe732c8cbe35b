"""The loss: its denominator, the cotangents of mc and exact labels, its gradient's rounding."""
