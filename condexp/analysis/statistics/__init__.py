"""Statistics that hooks collect during passes: of layers, the network, weights and units."""
