"""From what a user calls a model to a directory of this machine: a path, or an id of the Hugging Face hub.

    1 a directory that exists is itself
    2 what looks like a path (./x, /x, ~/x, ../x, a/b/c) and does not exist is an error, and is never sent anywhere
    3 anything else of the form `name` or `owner/name` is an id, and huggingface_hub finds or fetches it

Cache, token, offline switch, endpoint and progress bars are huggingface_hub's own affair: HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT and the others mean here what they mean to every program that uses it. Of a model's files
only those are fetched that are read here; a pickle never. Whatever goes wrong is one line, which says first that there
is no such directory here, and then what came of asking the hub.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.network import has_trust, proxy_note, unusable
from gnomon.reference.checkpoint.tensors import ADAPTER, GGUF, OTHER_FORMS
from gnomon.reference.system.files import absolute

PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
NEAR = 0.8  # of two names: at 1 they are the same
ID = re.compile(rf"(?:{PART}/)?{PART}")

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    ADAPTER,  # to say what it is
    "*.safetensors",
    "model.safetensors.index.json",
)
UNWANTED = (
    "*/*",  # other forms of the same model
    "consolidated*",  # the same weights once more, under other names
    "*.bin",
)


def is_hub_id(model: str) -> bool:
    """Whether a name is asked of the hub: it is nothing on this machine, and has the form of an id."""
    return ID.fullmatch(model) is not None and not os.path.lexists(model)


def locate(model: str | Path, revision: str | None = None, say: Callable[[str], None] | None = None) -> Path:
    """The directory of a model, fetched if it is neither on this machine nor in the hub's cache.

    revision: a branch, tag or commit of a hub id. A Path is never an id. say: told before the hub is asked, which may
    take long. Raises CheckpointError.
    """
    if revision == "":
        raise CheckpointError("the revision is an empty string; leave it out for the default one")
    if isinstance(model, str) and is_hub_id(model):
        if say is not None:
            say(f"{model}: {_not_here(model)}; looking for it in the hub's cache and on the hub")
        return _fetched(model, revision)
    path = Path(model)
    if not path.is_dir():
        if path.is_file() and path.match(GGUF):
            raise CheckpointError(f"{absolute(path)} {OTHER_FORMS[GGUF]}")
        what = "a file; give the directory that it is in" if path.is_file() else _not_here(model)
        raise CheckpointError(f"{absolute(path)}: {what}")
    if revision is not None:
        raise CheckpointError(f"{absolute(path)}: a directory has no revision {revision!r}; only a hub id has")
    return path


def _not_here(model: str | Path) -> str:
    """That there is no such directory, and the only one beside it, if any, whose name is nearly the same."""
    path = Path(model)
    try:
        beside = [name for name in os.listdir(path.parent) if (path.parent / name).is_dir()]
    except OSError:
        beside = []
    names = {name: name.casefold() for name in beside}
    near = set(get_close_matches(path.name.casefold(), names.values(), n=2, cutoff=NEAR))
    [*meant] = [name for name, folded in names.items() if folded in near]
    hint = f" (is {path.parent / meant[0]} meant?)" if len(meant) == 1 else ""
    return f"no such directory on this machine{hint}"


def _fetched(model: str, revision: str | None) -> Path:
    asked = f"{model}: {_not_here(model)}, and asked of the hub"
    try:
        from huggingface_hub import snapshot_download
    except ValueError as error:  # it reads its variables when it is imported
        raise CheckpointError(f"{asked}: one of the variables HF_… has a wrong value: {error}") from None
    try:
        snapshot = snapshot_download(
            model, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except Exception as error:  # of the HTTP client, the disk, the file transfer: each has errors of its own
        raise CheckpointError(f"{asked}: {_reason(error, revision)}") from None
    directory = Path(snapshot)
    if (directory / ADAPTER).is_file():
        raise CheckpointError(f"{asked}: {ADAPTER} {OTHER_FORMS[ADAPTER]}")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{asked}: it has no config.json, so it is no model of a kind known here")
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{asked}: it has no safetensors weights; a pickle (.bin) can run code when read, and is refused"
        )
    return directory


def _reason(error: Exception, revision: str | None) -> str:
    """In words of our own: an error's own text may be long, and the URLs in it may have been signed for one user."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    match cause:
        case errors.HFValidationError():
            return "that is no form that an id of it can have"
        case errors.GatedRepoError():
            return f"gated: ask its owners for access at {hub}, then set HF_TOKEN or run `hf auth login`"
        case errors.RepositoryNotFoundError():
            return f"{hub} shows no such model; if it is private, set HF_TOKEN or run `hf auth login`"
        case errors.RevisionNotFoundError():
            return f"{hub} has no revision {revision or constants.DEFAULT_REVISION!r} of it"
        case errors.OfflineModeIsEnabled():
            what = "an incomplete copy" if isinstance(error, errors.IncompleteSnapshotError) else "no copy"
            return f"HF_HUB_OFFLINE is set, and the cache {cache} has {what} of this revision"
        case _ if status in (401, 403):
            return f"{hub} refused the token, or the lack of one, with {status}; see HF_TOKEN and `hf auth login`"
        case _ if status is not None:
            return f"{hub} answered {status}; a copy in the cache would have served"
        case RuntimeError() if "home directory" in str(cause):
            return "there is no home directory for the hub's cache; HF_HOME names another"
        case _ if not hub.startswith(("https://", "http://")):
            return f"HF_ENDPOINT={hub!r} does not begin with https:// or http://"
        case ImportError():
            return unusable(cause)
        case _ if type(cause).__name__ in ("InvalidURL", "InvalidProxyURL"):  # of httpx, httpx2 or requests
            return unusable(cause)
        case OSError(filename=None) if not has_trust():  # an error of that file's does not name it
            return unusable(cause)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"no space left for it in the cache {cache}; HF_HOME moves it"
        case OSError(strerror=str(text)):
            return f"the cache {cache}: {text}"
        case _:
            return (
                f"{hub} cannot be reached, and the cache has no complete copy ({type(cause).__name__}){proxy_note(hub)}"
            )
