"""From a directory or a hub id to a configuration and tensors, or to all that is wrong with it."""
