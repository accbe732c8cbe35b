"""The format of results.h5, dataset by dataset; pure."""
