"""The sources that decide what is served: every file of a wing but its folders of tools.

A fingerprint hashes them: a change of what is served changes it, and a change of a picture or a program does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

SHOWN = ("trace", "golden", "default_model")  # decide no number; the weights are hashed by themselves


def sources_hash(wing: Path, aside: Collection[str] = SHOWN, endings: Collection[str] = (".py",)) -> bytes:
    """SHA-256 over the files below `wing` with one of the endings, but those in the folders `aside` of it."""
    digest = hashlib.sha256()
    for file in sorted(wing.rglob("*")):
        if file.suffix in endings and file.relative_to(wing).parts[0] not in aside:
            digest.update(file.read_bytes())
    return digest.digest()
