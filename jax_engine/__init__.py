"""The same tokens as the reference, fast: an engine in JAX that batches, caches prefixes and serves many at a time."""
