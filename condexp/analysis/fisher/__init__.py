"""Exact Fisher blocks, of a layer and of the network, and the memory they take."""
