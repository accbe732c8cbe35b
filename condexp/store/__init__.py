"""The results file and the run folder on disk: the only place that knows HDF5."""
