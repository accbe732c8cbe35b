"""What lies beside results.h5: identity, status, liveness, checkpoints, provenance."""
