"""The operations that hardware decides, and their native form for CPUs."""
