"""Rotary frequencies as config.json declares them: plain ones, and the ways to stretch them over a longer context.

    default   θ^(−2i/R)                                                    Su et al. 2021
    linear    all of them divided by `factor`                              Chen et al. 2023
    dynamic   plain within the context that the model has, and none of ours is longer
    llama3    slow turns divided by `factor`, fast ones kept, a ramp between                Llama 3.1
    yarn      the same by another ramp, and what is turned is stretched    Peng et al. 2023
    longrope  a factor of its own for every frequency; one set if the context is longer than the original one, another
              if it is not                                                 Ding et al. 2024

Rotary positions must be a function of the position alone, or a token's logits would change when the text grows. That is
why the context, and not the length of a text, decides in the last one.

config.json says it in several places and words: transformers 5 in rope_parameters, its predecessors in rope_scaling,
rope_theta and others beside it. Where it is said twice, both must come to the same frequencies, whatever the words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gnomon.reference.arrays import F64
from gnomon.reference.body.shown import shown
from gnomon.reference.checkpoint.entries import Entries, mapping, positive, positive_or_none, positives, size, switch
from gnomon.reference.checkpoint.errors import CheckpointError, UnsupportedModel
from gnomon.reference.model_config import Rope

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


ALIASES = {"su": "longrope", "mrope": "default"}  # Phi-3's first files; a text's positions are alike in all sections
LAYER_KINDS = ("full_attention", "sliding_attention")
SHARED = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")  # that may stand beside the rest

RopeForms = Mapping[str, Entries]
"""What config.json says of rotary positions, by where it says it: one place, or several that must agree."""


def check_kinds(given: Entries, defaults: Entries) -> None:
    """Of an architecture whose sliding layers have rotary positions of their own: rope_parameters must say which are
    meant, and so must a θ for which there is no default of the sliding layers. Raises UnsupportedModel."""
    entries = mapping(given, "rope_parameters")
    if entries and not set(entries) & {*LAYER_KINDS}:
        raise UnsupportedModel(
            f"config.json has rope_parameters {shown(entries)}; supported here: full_attention and sliding_attention "
            "in it, each with its own"
        )
    theta, usual = given.get("rope_theta"), defaults.get("rope_theta")
    says = "rope_theta" in mapping(entries, "sliding_attention")
    if theta not in (None, usual) and not says and "rope_local_base_freq" not in defaults:
        raise UnsupportedModel(
            f"config.json has rope_theta {shown(theta)}, and whether it is the sliding layers' too is not said; "
            f"supported: {shown(usual)}, or rope_parameters with full_attention and sliding_attention"
        )


def rope_forms(
    kind: str, given: Entries, defaults: Entries, aliases: Mapping[str, str], by_kind: bool = False
) -> RopeForms:
    """For layers of this kind. given: what config.json has · defaults: of the architecture · aliases: what it calls
    its rope_types · by_kind: rope_scaling is of full layers only. Raises CheckpointError where one place contradicts
    another."""
    shared = {name: given[name] for name in SHARED if given.get(name) is not None}
    theta = shared.get("rope_theta", defaults.get("rope_theta", 10000.0))
    local = given.get("rope_local_base_freq", defaults.get("rope_local_base_freq"))  # Gemma 3, before transformers 5
    forms: dict[str, dict[str, Any]] = {}
    for place in ("rope_parameters", "rope_scaling"):
        entries = mapping(given, place)
        if set(entries) & {*LAYER_KINDS}:
            if mapping(entries, kind):
                own = _in_one_wording(entries[kind], f"{place}.{kind}", aliases)
                forms[place] = {**shared, "rope_theta": theta, **own}
        elif entries and not (kind == "sliding_attention" and (by_kind or local is not None)):
            own = _in_one_wording(entries, place, aliases)
            for name in shared.keys() & own.keys():
                _must_agree(f"{place}.{name}", own[name], name, shared[name])
            forms[place] = {**shared, "rope_theta": theta, **own}
    if kind == "sliding_attention" and local is not None and (not forms or "rope_local_base_freq" in given):
        forms["rope_local_base_freq"] = {"rope_type": "default", "rope_theta": local}
    return forms or {"rope_theta": {**shared, "rope_type": "default", "rope_theta": theta}}


def _in_one_wording(entries: Entries, place: str, aliases: Mapping[str, str]) -> dict[str, Any]:
    """Without nulls, and with the type under one name."""
    own = {name: value for name, value in entries.items() if value is not None}
    types = {name: own.pop(name) for name in ("rope_type", "type") if name in own}
    for name, value in types.items():
        if isinstance(value, str):
            types[name] = aliases.get(value, ALIASES.get(value, value))
    if len(types) == 2:
        _must_agree(f"{place}.rope_type", types["rope_type"], f"{place}.type", types["type"])
    return {**own, "rope_type": next(iter(types.values()), "default")}


def _must_agree(one: str, value: Any, other: str, its: Any) -> None:
    if value != its:
        raise CheckpointError(f"{one} is {shown(value)}, but {other} is {shown(its)}; give one of them")


def rope_of(forms: RopeForms, head_dim: int, fraction: float, longest: int, context: int) -> Rope:
    """fraction: how much of a head is turned, where the forms do not say it · longest: the positions that the model's
    files allow · context: those that it is served with."""
    ropes: dict[str, Rope] = {}
    for place, form in forms.items():
        part = positive({"partial_rotary_factor": form.get("partial_rotary_factor", fraction)}, "partial_rotary_factor")
        dim = int(head_dim * part)
        if dim % 2 or not 0 < dim <= head_dim:
            raise CheckpointError(f"head_dim {head_dim}, of which {part:g} is rotated: {dim} is no even number of it")
        ropes[place] = _rope(form, dim, longest, context)
    (first, rope), *others = ropes.items()
    for other in (place for place, its in others if its.turning != rope.turning):
        for name in sorted(forms[first].keys() | forms[other].keys(), key=lambda name: (name != "rope_type", name)):
            _must_agree(f"{first}: {name}", forms[first].get(name), f"in {other} it", forms[other].get(name))
    return rope


def _rope(rope: Entries, dim: int, longest: int, context: int) -> Rope:
    """dim: how many coordinates of a head are turned (R)."""
    kind = rope["rope_type"]
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"rope_type {shown(kind)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    theta, magnitude = positive(rope, "rope_theta"), 1.0
    plain = np.array(Rope.plain(theta, dim).frequencies)
    match kind:
        case "linear":
            plain = plain / positive(rope, "factor")
        case "llama3":
            plain = _llama3(plain, rope, longest)
        case "yarn":
            plain, magnitude = _yarn(plain, rope, longest)
        case "longrope":
            plain, magnitude = _longrope(plain, rope, longest, context)
    return Rope(tuple(plain.tolist()), theta, magnitude)


def _llama3(plain: F64, rope: Entries, longest: int) -> F64:
    low, high = positive(rope, "low_freq_factor"), positive(rope, "high_freq_factor")
    turns = size(rope, "original_max_position_embeddings", longest) * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * plain + (1 - keep) * plain / positive(rope, "factor")


def _yarn(plain: F64, rope: Entries, longest: int) -> tuple[F64, float]:
    original = size(rope, "original_max_position_embeddings", longest)
    factor = positive(rope, "factor", longest / original)
    dim, theta = 2 * len(plain), positive(rope, "rope_theta")

    def pair_that_turns(times: float) -> float:
        """Which pair of coordinates turns so many times within the original context."""
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(positive(rope, "beta_fast", 32.0)), pair_that_turns(positive(rope, "beta_slow", 1.0))
    if switch(rope, "truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_magnitude(rope, factor)


def _yarn_magnitude(rope: Entries, factor: float) -> float:
    def stretched(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    given = positive_or_none(rope, "attention_factor")
    one, other = rope.get("mscale"), rope.get("mscale_all_dim")
    if given is not None:
        return given
    if one and other:
        return stretched(positive(rope, "mscale")) / stretched(positive(rope, "mscale_all_dim"))
    return stretched(1.0)


def _longrope(plain: F64, rope: Entries, longest: int, context: int) -> tuple[F64, float]:
    original = size(rope, "original_max_position_embeddings", longest)
    which = "long_factor" if context > original else "short_factor"
    factor = positive(rope, "factor", longest / original)
    magnitude = positive_or_none(rope, "attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / np.array(positives(rope, which, len(plain))), magnitude
