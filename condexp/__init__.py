"""Layer-wise conditioning analysis of deep networks."""
