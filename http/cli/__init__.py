"""The command `gnomon`."""
