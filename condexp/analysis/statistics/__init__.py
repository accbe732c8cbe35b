"""What hooks collect during passes: per layer, per network, weights, moments, units."""
