"""What can be wrong with a model's directory."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A model directory that cannot be loaded, with the reason."""


class ContextError(CheckpointError):
    """A context is asked for that the model does not have."""


class UnsupportedModel(CheckpointError):
    """A sound checkpoint of a model this version does not run."""
