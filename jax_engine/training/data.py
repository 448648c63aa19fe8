"""What the small model is trained on, in the order the text passes through:
1. the corpus files are found and cut into stories (`find_corpus`, `read_stories`);
2. a byte-level BPE tokenizer is trained on them (`train_tokenizer`);
3. every epoch shuffles the stories and cuts half of them anew for fill-in-the-middle (`cut_story`);
4. a story becomes a document: inputs and next-token targets, laid out as a server will present it;
5. an epoch packs whole documents into rows (`pack`, `Epoch`), from which steps take batches.
All randomness comes from (seed, epoch), so that a position in the data is an epoch and a row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
MARKER_TOKENS = (END_OF_TEXT, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)  # ids 0, 1, 2, 3
TRAIN_FILE, HELD_OUT_FILE = "tinystories-8M.train.txt", "tinystories-8M.val.txt"

TokenIds = NDArray[np.int32]


class DataError(ValueError):
    """The corpus is missing or unusable; the message is one line for the user."""


# 1. Corpus


def find_corpus(data: str | Path | None, file: str) -> Path:
    """`file` in `data`, else in $GNOMON_DATA, else in ../shared/data beside the repository."""
    folder = Path(data or os.environ.get("GNOMON_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = folder / file
    if not path.is_file():
        raise DataError(f"no {file} in {folder}: pass --data or set GNOMON_DATA to the corpus folder")
    return path


def read_stories(path: Path) -> list[str]:
    """The stories of a corpus file, separated by `<|endoftext|>`, each stripped, empty ones dropped."""
    parts = path.read_text(encoding="utf-8").split(END_OF_TEXT)
    stories = [story for story in (part.strip() for part in parts) if story]
    if not stories:
        raise DataError(f"{path} holds no story")
    return stories


# 2. Tokenizer


def train_tokenizer(stories: Sequence[str], vocab_size: int = 2048) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): 4 special ids, 256 bytes, then merges.

    No normaliser, no post-processor: nothing is added to what the caller wrote.
    """
    smallest = len(MARKER_TOKENS) + 256
    if vocab_size < smallest:
        raise DataError(f"vocab_size {vocab_size} is below {smallest}: special tokens and the 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in MARKER_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    return tokenizer


# 3. Cuts


class StoryCut(NamedTuple):
    """A story for fill-in-the-middle: three texts that join without loss."""

    prefix: str
    middle: str
    suffix: str


def word_starts(story: str) -> NDArray[np.int64]:
    """Character offsets at which a word begins, the blank before it included; 0 and the length too."""
    chars = np.frombuffer(story.encode("utf-32-le"), dtype=np.uint32)
    blank = (chars == ord(" ")) | (chars == ord("\n"))
    starts = np.flatnonzero(blank[1:] & ~blank[:-1]) + 1
    return np.concatenate([[0], starts, [len(story)]])


def cut_story(story: str, rng: np.random.Generator, jitter: float = 0.25) -> StoryCut:
    """Cut a story where people and editors do, with a mostly short middle.

    Begin and end lie at word borders. The middle has 1 to 8 words (half of the cuts), runs on to the end of
    a sentence (three in ten), or is of any length. Then each of the two cuts moves with probability `jitter`:
    behind its blank, so that the text before keeps the space, or to any character near by. The suffix is shortened to
    its next 1 to 3 sentences in half of the cuts, since a caller's suffix need not be a whole story's rest.
    """
    borders = word_starts(story)
    words = len(borders) - 1
    first = int(rng.integers(words))
    kind = rng.random()
    if kind < 0.5:
        last = min(words, first + int(rng.integers(1, 9)))
    elif kind < 0.8:
        last = first + 1
        while last < words and story[borders[last] - 1] not in '.!?"':
            last += 1
    else:
        last = int(rng.integers(first, words)) + 1
    begin, end = (_moved(story, int(borders[i]), rng, jitter) for i in (first, last))
    begin, end = min(begin, end), max(begin, end)
    stop = len(story)
    if rng.random() < 0.5:
        wanted, border = int(rng.integers(1, 4)), last
        while wanted and border < words:
            border += 1
            wanted -= story[borders[border] - 1] in '.!?"'
        stop = max(end, int(borders[border]))
    return StoryCut(story[:begin], story[begin:end], story[end:stop])


def _moved(story: str, offset: int, rng: np.random.Generator, jitter: float) -> int:
    draw = rng.random()
    if draw < jitter / 2:
        return min(offset + 1, len(story))
    if draw < jitter:
        return int(rng.integers(max(0, offset - 6), min(len(story), offset + 6) + 1))
    return offset


# 4. Documents


class TrainingDocument(NamedTuple):
    """Model inputs and, at each of them, the token that comes next. Both int32 [T]."""

    inputs: TokenIds
    targets: TokenIds
    middle: int  # the first position whose target belongs to a middle to be filled in; T in a story


def story_document(story: Sequence[int], opened: bool = True) -> TrainingDocument:
    """`<|endoftext|> story` with targets `story <|endoftext|>`; not opened: the story alone, from its start."""
    ids = np.array([0, *story, 0], dtype=np.int32)
    skip = 0 if opened else 1
    return TrainingDocument(ids[skip:-1], ids[skip + 1 :], len(ids) - 1 - skip)


def fim_document(prefix: Sequence[int], suffix: Sequence[int], middle: Sequence[int], context: int) -> TrainingDocument:
    """`[PRE] prefix [SUF] suffix [MID] middle`, with `<|endoftext|>` as the last target.

    The order prefix, suffix, middle (PSM) of Bavarian et al. 2022, arXiv:2207.14255. The three parts are
    encoded separately, as a server encodes a prompt and a suffix. What exceeds the context is taken off the
    suffix's end as long as 32 tokens of it remain, then off the prefix's start.
    """
    excess = max(0, 3 + len(prefix) + len(suffix) + len(middle) - context)
    off_suffix = min(excess, max(0, len(suffix) - 32))
    suffix = suffix[: len(suffix) - off_suffix]
    prefix = prefix[min(len(prefix), excess - off_suffix) :]
    ids = np.array([1, *prefix, 2, *suffix, 3, *middle, 0], dtype=np.int32)
    return TrainingDocument(ids[:-1], ids[1:], len(ids) - 2 - len(middle))


# 5. Rows


class PackedRows(NamedTuple):
    """Rows for one step, [B, T] each. Attention stays within a segment of a row."""

    inputs: TokenIds
    targets: TokenIds
    segments: TokenIds
    middles: NDArray[np.bool_]  # whether the target belongs to a middle, its end included


def pack(lengths: Sequence[int], context: int, lookahead: int = 64) -> list[list[tuple[int, int, int]]]:
    """Rows as lists of (document, begin, end), each row exactly `context` tokens.

    Best fit among the next documents (Ding et al. 2024, arXiv:2404.10830), so that attention sees documents
    whole: the longest that fits goes in. Where none does, the row ends with the beginning of the next one,
    which stays in line. A document longer than a row is split. What does not fill a last row is left out.
    """
    pieces = [
        (doc, begin, min(begin + context, length))
        for doc, length in enumerate(lengths)
        for begin in range(0, length, context)
    ]
    waiting, upcoming = pieces[:lookahead], iter(pieces[lookahead:])
    rows: list[list[tuple[int, int, int]]] = []
    row: list[tuple[int, int, int]] = []
    space = context
    while waiting:
        fitting = [(end - begin, -place) for place, (_, begin, end) in enumerate(waiting) if end - begin <= space]
        if fitting:
            length, place = max(fitting)
            row.append(waiting.pop(-place))
            waiting.extend([piece for piece in [next(upcoming, None)] if piece])
            space -= length
        else:
            doc, begin, _ = waiting[0]
            row.append((doc, begin, begin + space))
            space = 0
        if not space:
            rows.append(row)
            row, space = [], context
    return rows


class Epoch:
    """One pass over the stories as rows of `context` tokens, the same for the same (seed, epoch, context).

    A document is a fill-in-the-middle cut with probability `fim_rate`; of the others one in five lacks the
    opening `<|endoftext|>`, because prompts do. In half of the rows attention stays within a document, as in
    serving; in the others it sees the whole row, so that distances up to the context are trained.
    """

    def __init__(
        self,
        stories: Sequence[str],
        tokenizer: Tokenizer,
        context: int,
        fim_rate: float = 0.5,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        rng = np.random.default_rng([seed, epoch])
        plain: list[tuple[int, str, bool]] = []
        cuts: list[tuple[int, StoryCut]] = []
        for place, index in enumerate(rng.permutation(len(stories))):
            if rng.random() < fim_rate:
                cuts.append((place, cut_story(stories[index], rng)))
            else:
                plain.append((place, stories[index], bool(rng.random() < 0.8)))

        def encode(texts: Sequence[str]) -> list[list[int]]:
            return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

        documents: dict[int, TrainingDocument] = {}
        for (place, _, opened), ids in zip(plain, encode([text for _, text, _ in plain]), strict=True):
            documents[place] = story_document(ids, opened)
        prefixes, middles, suffixes = (encode([cut[part] for _, cut in cuts]) for part in range(3))
        for (place, _), prefix, middle, suffix in zip(cuts, prefixes, middles, suffixes, strict=True):
            documents[place] = fim_document(prefix, suffix, middle, context)

        rows = pack([len(documents[place].inputs) for place in range(len(stories))], context)
        alone = rng.random(len(rows)) < 0.5
        self.inputs: TokenIds = np.empty((len(rows), context), np.int32)
        self.targets: TokenIds = np.empty((len(rows), context), np.int32)
        self.segments: TokenIds = np.zeros((len(rows), context), np.int32)
        self.middles: NDArray[np.bool_] = np.zeros((len(rows), context), np.bool_)
        for index, row in enumerate(rows):
            column = 0
            for segment, (doc, begin, end) in enumerate(row):
                span = slice(column, column + end - begin)
                self.inputs[index, span] = documents[doc].inputs[begin:end]
                self.targets[index, span] = documents[doc].targets[begin:end]
                self.segments[index, span] = segment if alone[index] else 0
                self.middles[index, span] = np.arange(begin, end) >= documents[doc].middle
                column = span.stop

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, first: int, rows: int) -> PackedRows:
        """The rows from `first` on."""
        span = slice(first, first + rows)
        return PackedRows(self.inputs[span], self.targets[span], self.segments[span], self.middles[span])
