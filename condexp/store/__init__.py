"""The results file and the run folder on disk."""
