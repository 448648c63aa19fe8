"""What the engine runs on: devices, options of jax, memory, and what is kept for the next start."""
