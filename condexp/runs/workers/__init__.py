"""The ranks of a run that rank 0 starts itself, and how a fresh interpreter begins."""
