"""A server's answers computed again on its own checkpoint."""
