"""Tables, figures and reports from stored runs alone."""
