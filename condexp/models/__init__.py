"""Networks. They know nothing of measuring."""
