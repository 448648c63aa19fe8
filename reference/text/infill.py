"""Which tokens of a model fill in the middle, and in which order they are sent (LAW.md, section 9).

    Order      the orders there are, and what stands where in each (PARTS)
    FAMILIES   one row a family of models: its tokens, its order, and where its makers say so
    decide     the tokens and the order of one model, with the reason, or the reason why it has none

A family whose prompt is not made of a marker before each part is left out: InCoder and CodeGen2 (mask tokens),
CodeGeeX4 (a chat's frame around the prompt). Such a model has no `suffix` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

from gnomon.reference.body.shown import shown

DECLARED = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")  # keys of tokenizer_config.json
INFILL_FLAGS = ("--fim-prefix", "--fim-suffix", "--fim-middle")


class InfillError(ValueError):
    """Tokens or an order that this tokenizer cannot have."""


class Order(StrEnum):
    """How the two texts and the markers are put together. PSM and both SPMs are those of Bavarian et al. 2022."""

    psm = "psm"
    spm = "spm"
    spm_joined = "spm-joined"  # the middle goes on from the prompt, with no marker between the two


PARTS: Mapping[Order, tuple[str, ...]] = {
    Order.psm: ("[PRE]", "prompt", "[SUF]", "suffix", "[MID]"),
    Order.spm: ("[SUF]", "suffix", "[PRE]", "prompt", "[MID]"),
    Order.spm_joined: ("[PRE]", "[SUF]", "suffix", "[MID]", "prompt"),
}
WITHOUT_MIDDLE = Order.spm  # in the other orders the middle token alone says where a text ends

T = TypeVar("T")


def put_together(order: Order, prefix: T, suffix: T, middle: T | None) -> list[T | str]:
    """The markers in their places; "prompt" and "suffix" stand for the two texts."""
    markers = {"[PRE]": prefix, "[SUF]": suffix, "[MID]": middle}
    parts = (markers.get(part) if part in markers else part for part in PARTS[order])
    return [part for part in parts if part is not None]


class Infill(NamedTuple):
    """The fill-in-the-middle tokens of a model, and their order. middle: None for a model that has none."""

    prefix: int
    suffix: int
    middle: int | None
    order: Order = Order.psm

    @property
    def parts(self) -> list[int | str]:
        return put_together(self.order, self.prefix, self.suffix, self.middle)


class InfillFamily(NamedTuple):
    """How the models of a family were taught to fill in the middle: the literals of their tokens, and the order.

    evidence: where the order is documented, by the makers where they say it.
    ends: what they write after a middle besides the markers and the end-of-sequence ids; a tokenizer may lack some.
    named: a word that the model's own files must have where they name the model, since the tokens are another
    family's too.
    """

    name: str
    order: Order
    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()
    evidence: str = ""
    named: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.prefix, self.suffix) if self.middle is None else (self.prefix, self.suffix, self.middle)


# There are no spaces between the parts; a BOS comes first where the tokenizer puts one before strings anyway. Many
# families were trained with more than one order: the row has the one in which their makers prompt them.
PIPES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
ANGLES = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
FAMILIES = (
    InfillFamily("CodeGemma", Order.psm, *PIPES, ("<|file_separator|>",), "CodeGemma's model card"),
    InfillFamily(
        "Qwen2.5-Coder",
        Order.psm,
        *PIPES,
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>", "<|endoftext|>"),
        "Qwen2.5-Coder's technical report",
    ),
    InfillFamily("Granite 4.0", Order.psm, *PIPES, ("<|fim_pad|>", "<|end_of_text|>"), "IBM's Granite documentation"),
    InfillFamily("gnomon", Order.psm, *PIPES, ("<|endoftext|>",), "the embedded model's MODEL_CARD.md"),
    InfillFamily(
        "StarCoder2",
        Order.psm,
        *ANGLES,
        ("<fim_pad>", "<file_sep>", "<|endoftext|>"),
        "StarCoder's model card, whose tokens StarCoder2 keeps,",
    ),
    InfillFamily("StarCoder", Order.psm, *ANGLES, ("<fim_pad>", "<|endoftext|>"), "StarCoder's model card"),
    InfillFamily("Granite Code", Order.psm, *ANGLES, ("<fim_pad>", "<|end_of_text|>"), "the paper of Granite Code"),
    InfillFamily(
        "Mellum",
        Order.spm,
        *ANGLES,
        ("<fim_pad>", "<filename>", "<|im_end|>", "<|endoftext|>"),
        "Mellum's model card",
        named="mellum",
    ),
    InfillFamily(
        "SantaCoder",
        Order.psm,
        *("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<fim-pad>", "<|endoftext|>"),
        "SantaCoder's model card",
    ),
    InfillFamily(
        "Code Llama",
        Order.psm,
        *("▁<PRE>", "▁<SUF>", "▁<MID>"),
        ("▁<EOT>",),
        "the paper of Code Llama; transformers' CodeLlamaTokenizer",
    ),
    InfillFamily(
        "DeepSeek-Coder",
        Order.psm,
        *("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        ("<｜end▁of▁sentence｜>",),
        "DeepSeek-Coder's README",
    ),
    InfillFamily("Codestral", Order.spm, "[PREFIX]", "[SUFFIX]", None, (), "mistral-common's encode_fim"),
    InfillFamily(
        "Seed-Coder",
        Order.spm,
        *("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),
        (),
        "Seed-Coder's technical report",
    ),
    InfillFamily(
        "aiXcoder",
        Order.spm_joined,
        *("▁<AIX-SPAN-PRE>", "▁<AIX-SPAN-POST>", "▁<AIX-SPAN-MIDDLE>"),
        (),
        "aiXcoder-7B's README",
    ),
)


class InfillOptions(NamedTuple):
    """What whoever starts the server says of it: literals of tokens, an order."""

    prefix: str | None = None
    suffix: str | None = None
    middle: str | None = None
    order: Order | None = None


class Decision(NamedTuple):
    """family: None where there is nothing to fill in the middle with. note: the tokens, the order and the reason in
    one line, or why there are none."""

    family: InfillFamily | None
    note: str


NO_OPTIONS = InfillOptions()
NONE_KNOWN = (
    "this model has no fill-in-the-middle tokens that are known here "
    f"(whoever serves it can name them: {', '.join(INFILL_FLAGS)}, --fim-order)"
)


def decide(
    ids: Mapping[str, int],
    vocab_size: int,
    declared: Mapping[str, str],
    names: Mapping[str, str],
    options: InfillOptions = NO_OPTIONS,
) -> Decision:
    """A model's fill-in-the-middle tokens and their order: as the operator says, else as tokenizer_config.json says,
    else by the table. Raises InfillError.

    ids: the tokenizer's, by literal. vocab_size: the model's; a marker beyond it cannot be sent.
    declared: what tokenizer_config.json has under the names of DECLARED, "" where it has nothing.
    names: what the model's files call it, by the place where they do.
    """
    given = {flag: literal for flag, literal in zip(INFILL_FLAGS, options, strict=False) if literal is not None}
    where = given or {name: literal for name, literal in declared.items() if literal}
    if where:
        family = _of_these(where, INFILL_FLAGS if given else DECLARED, ids, names, options.order)
    else:
        found = _recognised(FAMILIES, ids, names)
        if found is None and options.order is not None:
            raise InfillError(f"--fim-order is {options.order}, but {NONE_KNOWN}")
        if found is None:
            return Decision(None, NONE_KNOWN)
        family = found
    chosen = family._replace(order=options.order or family.order)
    if chosen.middle is None and chosen.order is not WITHOUT_MIDDLE:
        raise InfillError(
            f"the order {chosen.order} needs a middle token: give {', '.join(INFILL_FLAGS)} and --fim-order "
            f"{chosen.order}, or for a model without one --fim-order {WITHOUT_MIDDLE}"
        )
    for literal in chosen.markers:
        if ids[literal] >= vocab_size:
            reason = f"{shown(literal)} has id {ids[literal]}, and the model's ids are below {vocab_size}"
            if options != NO_OPTIONS:
                raise InfillError(f"{', '.join(given) or '--fim-order'}: {reason}")
            return Decision(None, f"this model has no fill-in-the-middle tokens: {reason}")
    return Decision(chosen, _note(chosen, _reason(family, names, options)))


def _of_these(
    where: Mapping[str, str],
    places: Sequence[str],
    ids: Mapping[str, int],
    names: Mapping[str, str],
    order: Order | None,
) -> InfillFamily:
    """The family with the tokens that were named; a nameless one if no row has them."""
    prefix, suffix, middle = (where.get(place) for place in places)
    alike = [row for row in FAMILIES if (row.prefix, row.suffix, row.middle) == (prefix, suffix, middle)]
    no_middle = middle is None and (order is WITHOUT_MIDDLE or bool(alike))
    for place in places[:2] if no_middle else places:
        if place not in where:
            hint = f"; only --fim-order {WITHOUT_MIDDLE} goes without it" if place == places[2] else ""
            raise InfillError(f"{place} is missing beside {', '.join(where)}{hint}")
        if where[place] not in ids:
            raise InfillError(f"{place} is {shown(where[place])}, which is no token of this tokenizer")
    if len(set(where.values())) < len(where):
        raise InfillError(f"{', '.join(where)} are {shown(list(where.values()))}; different tokens are needed")
    assert prefix is not None
    assert suffix is not None
    return _recognised(alike, ids, names) or InfillFamily("", Order.psm, prefix, suffix, middle)


def _recognised(rows: Sequence[InfillFamily], ids: Mapping[str, int], names: Mapping[str, str]) -> InfillFamily | None:
    """The row whose markers the tokenizer has. Of several: one that the model's files name, else the one of whose ends
    most are there, and then fewest are not; else the first."""

    def fit(row: InfillFamily) -> tuple[bool, int, int]:
        present = sum(end in ids for end in row.ends)
        return bool(row.named), present, present - len(row.ends)

    fitting = [row for row in rows if ids.keys() >= set(row.markers) and (not row.named or _places(row, names))]
    return max(fitting, key=fit, default=None)


def _places(row: InfillFamily, names: Mapping[str, str]) -> list[str]:
    """Where the files call the model by the row's name. Of a path only its end is a name."""
    return [place for place, name in names.items() if row.named in name.rstrip("/").rpartition("/")[2].lower()]


def _note(chosen: InfillFamily, reason: str) -> str:
    sent = " ".join(put_together(chosen.order, chosen.prefix, chosen.suffix, chosen.middle))
    return f"{sent} (order {chosen.order}: {reason})"


def _reason(family: InfillFamily, names: Mapping[str, str], options: InfillOptions) -> str:
    """Why this order; and which order another model would want whose tokens have the same names."""
    if options.order is not None:
        return "by --fim-order"
    if not family.name:
        return "by default, since no family in the table has these tokens; --fim-order changes it"
    if family.named:
        return f"as {family.evidence} says, since {_places(family, names)[0]} names it; --fim-order changes it"
    others = [row for row in FAMILIES if set(row.markers) == set(family.markers) and row.order != family.order]
    if not others:
        return f"as {family.evidence} says of these tokens; --fim-order changes it"
    rivals = ", ".join(f"--fim-order {row.order} if it is {row.name}" for row in others)
    return f"as {family.evidence} says of these tokens, but their names alone do not tell: {rivals}"
