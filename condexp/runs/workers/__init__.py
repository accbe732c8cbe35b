"""The other ranks of one run that rank 0 starts itself, and the code a fresh interpreter begins with."""
