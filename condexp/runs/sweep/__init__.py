"""Many runs: planned, launched each in a process of its own, stopped together, reported."""
