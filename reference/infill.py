"""Which tokens of a model fill in the middle, and in which order they are sent (LAW.md, section 9).

One table, FAMILIES, and what decides which row a tokenizer belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gnomon.reference.checkpoint import CheckpointError
from gnomon.reference.request import shown

DECLARED = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")  # keys of tokenizer_config.json


class Infill(NamedTuple):
    """The fill-in-the-middle tokens of a model trained as `prefix PRE`, `SUF`, `MID` (Bavarian et al. 2022, PSM
    order)."""

    prefix: int
    suffix: int
    middle: int


class Family(NamedTuple):
    """How the models of a family were taught to fill in the middle: the literals of their tokens."""

    name: str
    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()  # what they write after a middle, besides the three and the end-of-sequence ids

    @property
    def markers(self) -> tuple[str, str, str]:
        return self.prefix, self.suffix, self.middle


# All of these are prompted in the order PRE prompt SUF suffix MID, with no spaces between (Code Llama knows another
# order too); a BOS comes first where the tokenizer puts one before strings anyway. A tokenizer belongs to the first row
# of which it has every token, so that of rows with the same markers the one with more ends stands first.
FAMILIES = (
    Family("CodeGemma", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|file_separator|>",)),
    Family(
        "Qwen2.5-Coder",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>", "<|endoftext|>"),
    ),
    Family("gnomon", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|endoftext|>",)),
    Family("StarCoder2", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<|endoftext|>")),
    Family("StarCoder", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<|endoftext|>")),
    Family("SantaCoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>", "<|endoftext|>")),
    Family("Code Llama", "▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    Family("DeepSeek-Coder", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<｜end▁of▁sentence｜>",)),
)


def family_of(declared: Mapping[str, str], ids: Mapping[str, int], markers: Sequence[str] | None) -> Family | None:
    """The model's fill-in-the-middle tokens: as the operator says, else as tokenizer_config.json says, else by the
    table.

    declared: what tokenizer_config.json has under the names of DECLARED, "" where it has nothing.
    """
    if markers is not None:
        where = dict(zip(("--fim-prefix", "--fim-suffix", "--fim-middle"), markers, strict=True))
    elif any(declared.values()):
        where = declared
    else:
        return next((family for family in FAMILIES if ids.keys() >= {*family.markers, *family.ends}), None)
    for name, literal in where.items():
        if literal not in ids:
            raise CheckpointError(f"{name} is {shown(literal)}, which is no token of this tokenizer")
    if len(set(where.values())) < len(where):
        raise CheckpointError(
            f"{', '.join(where)} are {shown(list(where.values()))}; three different tokens are needed"
        )
    prefix, suffix, middle = where.values()
    chosen = Family("declared", prefix, suffix, middle)
    alike = (row for row in FAMILIES if row.markers == chosen.markers and ids.keys() >= set(row.ends))
    return next(alike, chosen)
