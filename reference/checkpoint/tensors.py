"""Safetensors files: which ones there are, what is in them, and one tensor at a time.

    1 the files: model.safetensors, or the shards that model.safetensors.index.json names; a pickle never. Where both
      are there neither is guessed at, and what a directory holds instead of them is called what it is
    2 their headers, and nothing more: the safetensors library judges whether they are sound, we add what it lets pass
    3 what is there against what a model needs: everything that is wrong is in one error
    4 a tensor, in the dtype it is stored in; NaN and infinity are refused by name

A file of the index lies in the directory itself, but may be a link to anywhere: a Hugging Face cache is made of links.
Which tensors a model needs and what becomes of them is decided in tensor_table.py, what may be there besides in
surplus.py.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np  # before ml_dtypes, whose C code prints a traceback where numpy cannot be imported

# isort: split
import ml_dtypes
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.system.files import Opened, read_regular

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Format(NamedTuple):
    """A dtype of weights: as NumPy knows it, as unsigned integers, and the bits that are all set in NaN and ∞ only."""

    dtype: Any
    integers: Any
    exponent: int


FORMATS = {
    "F64": Format(np.float64, np.uint64, 0x7FF0_0000_0000_0000),
    "F32": Format(np.float32, np.uint32, 0x7F80_0000),
    "F16": Format(np.float16, np.uint16, 0x7C00),
    "BF16": Format(ml_dtypes.bfloat16, np.uint16, 0x7F80),
}
OTHER_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
}  # of what is no weight
QUANTISED_ENDS = (  # ends of names of what quantised weights come with
    *("qweight", "qzeros", "g_idx", "scales", "weight_packed", "weight_scale", "weight_scale_inv", "weight_scale_2"),
    *("input_scale", "absmax", "quant_map", "SCB"),
)
MOST_PROBLEMS = 20  # of all that does not fit; a large model has thousands of tensors
WEIGHTS_AT_ONCE = 2**16  # weights looked at together for NaN and infinity
CHANGED = "was written to since its header was read"
ELEMENTS_AT_ONCE = 2**20  # elements of a tensor read together where it is not wanted whole
ALIGNMENT = 64  # bytes; what XLA's CPU backend asks for, so that it takes an array as it is, without a copy


class TensorLocation(NamedTuple):
    """Where a tensor is."""

    file: Path
    opened: Opened  # since its header was read
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    size: int


@dataclass(frozen=True, slots=True)
class TensorFiles:
    """The tensors of a directory, by name. A name has several entries where several files have such a tensor. The files
    stay open: replacing or removing them, the whole directory too, changes nothing of what is read later."""

    directory: Path
    entries: Mapping[str, tuple[TensorLocation, ...]]

    @classmethod
    def open(cls, directory: Path, warn: Callable[[str], None] = warnings.warn) -> TensorFiles:
        """Finds the files and reads their headers. warn: gets a line for an index that is not followed. Raises
        CheckpointError."""
        entries: dict[str, tuple[TensorLocation, ...]] = {}
        for file in _files(directory, warn):
            for name, entry in _header(file).items():
                entries[name] = (*entries.get(name, ()), entry)
        return cls(directory, entries)

    def renamed(self, rename: Callable[[str], str]) -> TensorFiles:
        """The same tensors under other names; two that get one name are both there, which `check` refuses."""
        entries: dict[str, tuple[TensorLocation, ...]] = {}
        for name, found in self.entries.items():
            entries[rename(name)] = (*entries.get(rename(name), ()), *found)
        return TensorFiles(self.directory, entries)

    def check(self, expected: Mapping[str, tuple[int, ...]], left_out: Callable[[str], bool]) -> None:
        """Raises CheckpointError with everything that is missing, extra, there twice, misshapen or of another dtype:
        the first of them in full, and how many more there are. left_out: names that are passed over."""
        wrong = [f"{name} is missing" for name in expected if name not in self.entries]
        for name, entries in self.entries.items():
            if name not in expected:
                if not left_out(name):
                    wrong.append(f"{_printable(name)} is not part of this architecture")
                continue
            if len(entries) > 1:
                wrong.append(f"{name} is in {' and in '.join(entry.file.name for entry in entries)}")
            for entry in entries:
                if entry.shape != expected[name]:
                    wrong.append(f"{name} has shape {list(entry.shape)}, not {list(expected[name])}")
                if entry.dtype not in FORMATS:
                    wrong.append(f"{name} has dtype {entry.dtype}, not one of {', '.join(FORMATS)}")
        if wrong:
            names = sorted(name for name in self.entries if name not in expected and name.endswith(QUANTISED_ENDS))
            cause = f"quantised weights ({_printable(names[0])}) are not supported: " if names else ""
            more = f"; and {len(wrong) - MOST_PROBLEMS} more" if len(wrong) > MOST_PROBLEMS else ""
            raise CheckpointError(f"{self.directory}: {cause}" + "; ".join(sorted(wrong)[:MOST_PROBLEMS]) + more)

    @property
    def changed(self) -> str | None:
        """A line about the first file that was written to since its header was read; None if none was."""
        entries = (entry for entries in self.entries.values() for entry in entries)
        opened = {id(entry.opened): entry for entry in entries}.values()
        return next((f"{entry.file}: {CHANGED}" for entry in opened if entry.opened.is_changed), None)

    def close(self) -> None:
        """Nothing is read any more."""
        for entries in self.entries.values():
            for entry in entries:
                entry.opened.close()

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        return self.entries[name][0].size

    def read(self, name: str) -> NDArray[Any]:
        """A tensor that has been checked, as it is stored. Raises CheckpointError."""
        entry = self.entries[name][0]
        kind, stored = FORMATS[entry.dtype], aligned(entry.size)
        _fill(entry, name, 0, stored)
        if not _is_finite(stored.view(kind.integers), kind.exponent):
            raise CheckpointError(f"{entry.file}: {name} has weights that are NaN or infinite")
        return stored.view(kind.dtype).reshape(entry.shape)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """A tensor's elements in order, as they are stored, a piece at a time.
        Raises CheckpointError."""
        entry = self.entries[name][0]
        dtype = FORMATS[entry.dtype].dtype if entry.dtype in FORMATS else OTHER_DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{entry.file}: {_printable(name)} has dtype {entry.dtype}, which is not read here")
        width = ELEMENTS_AT_ONCE * np.dtype(dtype).itemsize
        for begin in range(0, entry.size, width):
            piece = np.empty(min(width, entry.size - begin), np.uint8)
            _fill(entry, name, begin, piece)
            yield piece.view(dtype)

    def differ(self, one: str, other: str) -> bool:
        """Whether two tensors of one shape have different values, whatever the dtypes that hold them. Both are read
        once, a piece at a time. Raises CheckpointError."""
        for a, b in zip(self.blocks(one), self.blocks(other), strict=True):
            is_alike = a.dtype == b.dtype and bool((a.view(np.uint8) == b.view(np.uint8)).all())
            if not is_alike and not np.array_equal(a.astype(np.float64), b.astype(np.float64)):
                return True
        return False


def _fill(entry: TensorLocation, name: str, begin: int, memory: NDArray[np.uint8]) -> None:
    """Reads as many of a tensor's bytes as there is memory for, from its byte `begin` on."""
    try:
        count = entry.opened.read_into(memory, entry.start + begin)
        is_changed = entry.opened.is_changed  # asked afterwards: it may have been while it was read
    except OSError as error:
        raise CheckpointError(f"{entry.file}: {error.strerror or error}") from None
    if is_changed:
        raise CheckpointError(f"{entry.file}: {CHANGED}")
    if count != len(memory):
        raise CheckpointError(f"{entry.file}: ended within {_printable(name)}")


def aligned(size: int) -> NDArray[np.uint8]:
    """Bytes of memory that begin at a multiple of ALIGNMENT; NumPy's own begin anywhere."""
    memory = np.empty(size + ALIGNMENT - 1, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _is_finite(integers: NDArray[Any], exponent: int) -> bool:
    """Block by block, so that this costs no memory to speak of."""
    mask = integers.dtype.type(exponent)
    blocks = (integers[i : i + WEIGHTS_AT_ONCE] for i in range(0, len(integers), WEIGHTS_AT_ONCE))
    return not any(((block & mask) == mask).any() for block in blocks)


def _printable(name: str) -> str:
    """A name out of a file, fit for a line of a terminal."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name[:200])


# ---- the files


PICKLE = "is a pickle, which can run code when read, and is refused"
ADAPTER, GGUF, SHARDS = "adapter_config.json", "*.gguf", "model-*-of-*.safetensors"
OTHER_FORMS = {  # what a directory may hold instead of a model in the form that is read here
    ADAPTER: "is of an adapter, which is not applied here; merge it into its model (peft: merge_and_unload), and serve "
    "what that saves",
    GGUF: "is a GGUF file, which is not read here; the directory that it was made from is",
    "consolidated*.safetensors": "is the model in its makers' own form; the form of transformers is read",
    SHARDS: f"is a shard, and {INDEX}, which says what all of them are, is missing",
    **dict.fromkeys(("*.bin", "*.pt", "*.pth", "*.ckpt"), PICKLE),
}


def other_form(directory: Path) -> str:
    """The first of the other forms that is there, as the end of a message; nothing if none is."""
    for pattern, what in OTHER_FORMS.items():
        if pattern == SHARDS and os.path.lexists(directory / INDEX):
            continue
        found = sorted(path.name for path in directory.glob(pattern))
        if found:
            return f"; {_printable(found[0])} {what}"
    return ""


def _files(directory: Path, warn: Callable[[str], None]) -> list[Path]:
    single, index = directory / SINGLE, directory / INDEX
    if os.path.lexists(single):
        _refuse_irregular(single, str(single))
        _refuse_second_set(directory, warn)
        return [single]
    if not os.path.lexists(index):
        raise CheckpointError(f"{directory}: neither {SINGLE} nor {INDEX}{other_form(directory)}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    names = list(weight_map.values())
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index}: {name!r:.200} is no plain file name")
    for name in sorted(set(names)):
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r:.200} is no safetensors file, and no other kind is read")
        _refuse_irregular(directory / name, f"{index} names {name!r:.200}")
    return [directory / name for name in sorted(set(names))]


def _refuse_second_set(directory: Path, warn: Callable[[str], None]) -> None:
    """Beside model.safetensors an index of shards. transformers reads the one, vLLM and mlx the others."""
    weight_map = read_json(directory / INDEX, missing={}).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    others = sorted(name for name in names if isinstance(name, str) and name != SINGLE)
    here = [name for name in others if Path(name).name == name and os.path.lexists(directory / name)]
    if here:
        raise CheckpointError(
            f"{directory}: two sets of weights, {SINGLE} and what {INDEX} names ({_printable(here[0])}, …): which is "
            "the model's is not guessed at; move one away"
        )
    if others:
        warn(f"{INDEX} names files that are not here ({_printable(others[0])}, …): {SINGLE} is read instead")


def _refuse_irregular(file: Path, who: str) -> None:
    """A link that leads nowhere or in a circle, a directory, a pipe that would be waited for."""
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{who}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{who}: not a regular file")


def _header(file: Path) -> dict[str, TensorLocation]:
    """The tensors of one file. The library checks the header's form and that offsets follow one another from the
    header's end to the file's; a name that is there twice with equal offsets it lets pass."""
    try:
        with safe_open(file, framework="np") as sound:
            names = set(sound.keys())
        opened = Opened(file)
        length = int.from_bytes(_bytes(opened, 0, 8), "little")
        header = json.loads(_bytes(opened, 8, length), object_pairs_hook=_without_repeats)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = POINTER if _is_pointer(file) else _printable(str(error))
        raise CheckpointError(f"{file}: not a sound safetensors file: {reason}") from None
    header.pop("__metadata__", None)
    if header.keys() != names:
        raise CheckpointError(f"{file}: changed while it was being read")
    entries = {}
    for name, about in header.items():
        start, end = about["data_offsets"]
        shape = tuple(about["shape"])
        entries[name] = TensorLocation(file, opened, about["dtype"], shape, 8 + length + start, end - start)
    return entries


def _bytes(opened: Opened, start: int, count: int) -> bytes:
    memory = np.empty(count, np.uint8)
    return memory[: opened.read_into(memory, start)].tobytes()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"{name[:200]!a} is there twice")
        members[name] = value
    return members


POINTER = "a pointer of Git LFS; fetch the file itself"


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(19) == b"version https://git"
    except OSError:
        return False


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `missing`, if given, where there is no such file. A byte order mark, which some
    editors put first, is passed over. Raises CheckpointError."""
    try:
        value = json.loads(read_regular(path).decode("utf-8-sig"))
    except FileNotFoundError:
        if missing is not None and not path.is_symlink():
            return missing
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {POINTER if _is_pointer(path) else error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value
