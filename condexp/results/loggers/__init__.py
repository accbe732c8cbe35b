"""A run's numbers in other people's loggers: each a module, and in it a ``Logger``, of its name."""
