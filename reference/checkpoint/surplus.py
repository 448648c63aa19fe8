"""Tensors that a checkpoint has beyond those its config implies: each is held against what it would repeat.

    a tied head stored too   equal to the embedding, it is left out. Different, the two are not tied: the stored head is
                             served. Without the embedding, it is the embedding
    rotary tables, masks     of old exports. They repeat what config.json says; where they do not, config.json holds
    layers too many          those from num_hidden_layers on are not part of the model

Nothing of this is silent: whatever is left out and does not merely repeat, and a head that is not tied in spite of
config.json, is told in one line. In each of these transformers 5 does the same, with a warning or without. Any other
tensor is an error, in tensors.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gnomon.reference.checkpoint.tensor_table import names_of, stored_tensors
from gnomon.reference.checkpoint.tensors import FORMATS, TensorFiles
from gnomon.reference.model_config import ModelConfig, Rope

MASKED = -1000.0  # what a masked score was set to; e to the power of it is 0 in float32


class Fitted(NamedTuple):
    """A config and its files, which have been checked: all tensors that stored_tensors(config) names are there."""

    config: ModelConfig
    source: TensorFiles


def fitted(config: ModelConfig, source: TensorFiles, warn: Callable[[str], None]) -> Fitted:
    """The config as the files have it. Raises CheckpointError with everything that does not fit."""
    names = names_of(config)
    head, embedding = f"{names.outer['lm_head']}.weight", f"{names.outer['embed_tokens']}.weight"
    untied = replace(config, tie_word_embeddings=False)
    shapes = {stored.name: stored.shape for stored in stored_tensors(untied)}
    source = source.renamed(lambda name: _standard(name, config, shapes.keys()))
    if config.tie_word_embeddings and head in source.entries and embedding not in source.entries:
        source = source.renamed(lambda name: embedding if name == head else name)
    if head not in source.entries and config.tie_word_embeddings:
        del shapes[head]
    extra = {name: layer for name in source.entries if (layer := _extra_layer(name, config)) is not None}
    source.check(shapes, lambda name: name in extra or _repeats(name, config) is not None)
    if extra:
        numbers = sorted(set(extra.values()))
        layers = f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {numbers[0]} to {numbers[-1]}"
        warn(
            f"the files hold {len(extra)} tensors of {layers}, but config.json has num_hidden_layers "
            f"{config.num_hidden_layers}: left out"
        )
    for what, odd in _odd(config, source, extra.keys()):
        more = f" and {len(odd) - 1} more like it" if len(odd) > 1 else ""
        warn(f"{odd[0]}{more} in the files is not {what}: left out, config.json holds")
    if config.tie_word_embeddings and head in source.entries and source.differ(head, embedding):
        warn(
            f"config.json ties {head} to {embedding}, but the files hold both, with different values: they are not "
            "tied, and the stored head is served"
        )
        config = untied
    return Fitted(config, source)


def _standard(name: str, config: ModelConfig, known: Collection[str]) -> str:
    """The table's name of a tensor. A class without a head stores names without the prefix that the whole model has;
    like transformers, it is put before a name, or taken away, where that makes a name of the table."""
    names = names_of(config)
    if names.other_head and name == f"{names.other_head}.weight":
        return f"{names.outer['lm_head']}.weight"
    shorter = name.removeprefix(names.prefix)
    return next((form for form in (name, names.prefix + name, shorter) if form in known), name)


def _extra_layer(name: str, config: ModelConfig) -> int | None:
    """The number of a layer that the config does not have."""
    names = names_of(config)
    before, after = map(re.escape, names.layers.removeprefix(names.prefix).split("{i}"))
    found = re.match(rf"(?:{re.escape(names.prefix)})?{before}([0-9]{{1,9}}){after}", name)
    return int(found[1]) if found and int(found[1]) >= config.num_hidden_layers else None


# ---- what repeats config.json

ROTARY, MASK, MASKING = "the table of rotary angles that config.json implies", "a causal mask", "a mask's value"


def _repeats(name: str, config: ModelConfig) -> str | None:
    """What a tensor of an old export ought to be; None for any other."""
    if name.endswith("rotary_emb.inv_freq"):
        return ROTARY
    for end in names_of(config).masks:
        if name.endswith(f".{end}"):
            return MASKING if end.endswith("masked_bias") else MASK
    return None


def _odd(config: ModelConfig, source: TensorFiles, apart: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """What is not what it ought to be, by what that is."""
    fits = {ROTARY: _is_rotary, MASK: _is_causal, MASKING: _is_masking}
    for what, check in fits.items():
        named = sorted(name for name in source.entries if name not in apart and _repeats(name, config) == what)
        odd = [name for name in named if not check(name, config, source)]
        if odd:
            yield what, odd


def _is_rotary(name: str, config: ModelConfig, source: TensorFiles) -> bool:
    """One of the model's tables, or the plain one: stretching was not always stored. Rounded as it is stored."""
    entry = source.entries[name][0]
    ropes = {layer.rope for layer in config.family.layers if layer.rope is not None}
    tables = {rope.frequencies for rope in ropes}
    tables |= {Rope.plain(rope.theta, 2 * len(rope.frequencies)).frequencies for rope in ropes}
    if entry.dtype not in FORMATS or entry.shape not in {(len(table),) for table in tables}:
        return False
    [stored] = source.blocks(name)
    kind = stored.dtype
    with np.errstate(over="ignore", under="ignore"):
        rounded = [np.array(table).astype(kind).astype(np.float64) for table in tables if (len(table),) == stored.shape]
    step = 2 * max(2.0**-21, 2.0 ** -_mantissa(entry.dtype))  # the table itself was computed in float32
    return any(np.allclose(stored.astype(np.float64), table, rtol=step, atol=1e-7) for table in rounded)


def _mantissa(dtype: str) -> int:
    return {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}[dtype]


def _is_causal(name: str, config: ModelConfig, source: TensorFiles) -> bool:
    """[…, T, T]: whether a position sees itself and all before it, and nothing else."""
    shape = source.entries[name][0].shape
    if len(shape) < 2 or shape[-1] != shape[-2] or any(size != 1 for size in shape[:-2]):
        return False
    T, begin = shape[-1], 0
    for block in source.blocks(name):
        end = begin + len(block)
        rows = np.arange(begin // T, (end - 1) // T + 1)
        seen = (np.arange(T) <= rows[:, None]).ravel()[begin % T :][: len(block)]
        if not np.array_equal(block != 0, seen):
            return False
        begin = end
    return True


def _is_masking(name: str, config: ModelConfig, source: TensorFiles) -> bool:
    return all(bool((block.astype(np.float64) <= MASKED).all()) for block in source.blocks(name))
