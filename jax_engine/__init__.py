"""The engine interface on programs compiled by jax: the same tokens, fast. Start with `engine.py`."""
