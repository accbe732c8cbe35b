"""results.h5 as bytes: create, append, seal, validate, open."""
