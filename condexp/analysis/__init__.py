"""What is measured of a network: layers, recorder, measures, snapshots."""
