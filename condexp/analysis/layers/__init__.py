"""The measured modules, and how inputs and gradients become rows [groups, rows, features]."""
