"""The fast path in JAX. At present: `train`, which made the embedded model."""
