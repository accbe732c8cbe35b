"""Which modules are measured, and how their inputs and gradients become rows [groups, rows, features]."""
