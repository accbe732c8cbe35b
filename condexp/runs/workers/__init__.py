"""The ranks of a run other than 0: started, watched and run."""
