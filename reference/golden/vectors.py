"""Makes the golden documents: what the reference answers, and the numbers on its way there.

    requests    every case of cases.py: the answer, and for every sampled token the margin of its decision and the ids
                that a logit error up to REACH would have put in its place
    sampler     single draws through every stage, on a handful of logits, and on the model's own
    threefry    the random function: known answers, keys of steps, words of tokens, noise
    tokens      texts → ids and offsets; ids → labels, bytes and text, with characters that are cut

Everything is computed in float64. Log-probabilities and margins of requests are written with nine digits, which the
order of summation does not reach, so that the same file comes out on another machine; the stages of single draws with
all of them, as the shortest decimals that restore the numbers.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.arrays import F64
from gnomon.reference.completion import Run, end_ids, prepare
from gnomon.reference.engine import ReferenceEngine, Token
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.golden.answers import FLOAT32_TOLERANCE, REACH
from gnomon.reference.golden.cases import MODEL, ONCE, GoldenRequest, requests
from gnomon.reference.parity import Recording, RecordingEngine, admissible_tokens
from gnomon.reference.prng import DrawKey, step_key, threefry2x32, token_words
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import SamplingParams, Trace, gumbel, trace_draw
from gnomon.reference.text.utf8 import Decoder
from gnomon.reference.tokenizer import Tokenizer

Document = dict[str, Any]

FORMAT = 1


def documents(engine: ReferenceEngine, tokenizer: Tokenizer) -> Iterator[tuple[str, Document]]:
    """(file's name, document) of all of them."""
    yield "requests.json", request_document(engine, tokenizer)
    yield "sampler.json", sampler_document(engine, tokenizer)
    yield "threefry.json", threefry_document()
    yield "tokens.json", token_document(engine, tokenizer)


# ---- requests


def request_document(engine: ReferenceEngine, tokenizer: Tokenizer) -> Document:
    return {
        "format": FORMAT,
        "model": MODEL,
        "float32": {"logit_error": FLOAT32_TOLERANCE.logit_error, "logprob": FLOAT32_TOLERANCE.logprob},
        "reach": REACH,
        "cases": [answered(case, engine, tokenizer) for case in requests()],
    }


def answered(case: GoldenRequest, engine: ReferenceEngine, tokenizer: Tokenizer) -> Document:
    """One case with its answer."""
    is_text = isinstance(case.request, str)
    document: Document = {"name": case.name, "shows": case.shows, "body" if is_text else "request": case.request}
    body = case.request if isinstance(case.request, str) else json.dumps(case.request)
    recorder = RecordingEngine(engine)
    try:
        request = CompletionRequest.from_json(body.encode())
        run = prepare(request, recorder, tokenizer, MODEL)
    except InvalidRequest as error:
        told = error.to_json()["error"]
        return document | {"status": error.status, "error": {name: told[name] for name in ("type", "param", "code")}}
    whole = run.whole()
    document |= {"status": 200, "choices": [nine_digits(choice.to_json()) for choice in whole.choices]}
    if whole.usage is not None and (request.include_usage or not request.stream):
        usage = whole.usage.to_json()
        del usage["prompt_tokens_details"]
        document["usage"] = usage
    document["prompt_ids"] = [list(prompt.ids) for prompt in run.prompts]
    document["candidates"] = sampled_candidates(run, recorder.recordings[0], engine, tokenizer)
    return document


def sampled_candidates(run: Run, recording: Recording, engine: ReferenceEngine, tokenizer: Tokenizer) -> list[Document]:
    n, candidates = run.request.n, range(recording.request.candidates)
    found = []
    for j, prompt in enumerate(run.prompts):
        tokens = [[e for e in recording.events if isinstance(e, Token) and (e.prompt, e.candidate) == (j, c)]
                  for c in candidates]  # fmt: skip
        means = [sum(token.logprob for token in sampled) / max(len(sampled), 1) for sampled in tokens]
        ranks = list(candidates) if len(candidates) == n else sorted(candidates, key=lambda c: -means[c])
        for c in candidates:
            rank = ranks.index(c)
            ids = [token.id for token in tokens[c]]
            found.append({
                "prompt": j,
                "candidate": c,
                "index": j * n + rank if rank < n else None,
                "mean_logprob": nine_digits(means[c]),
                "ids": ids,
                "starts": text_starts(ids, len(prompt.text) if run.request.echo else 0, tokenizer),
                **decisions(recording, j, c, ids, engine, tokenizer),
            })  # fmt: skip
    return found


def text_starts(ids: Sequence[int], before: int, tokenizer: Tokenizer) -> list[int]:
    """Where each token begins in a text that has `before` characters already."""
    decoder, starts = Decoder(), []
    for v in ids:
        starts.append(before)
        before += len(decoder.push(tokenizer.token_bytes[v]))
    return starts


def decisions(
    recording: Recording, j: int, c: int, ids: Sequence[int], engine: ReferenceEngine, tokenizer: Tokenizer
) -> Document:
    """The margin of every step, and every step's rivals."""
    margins: list[float | None] = []
    rivals: list[list[Any]] = []
    if ids:
        prompt, counts = recording.request.prompts[j], np.zeros(engine.vocab_size, np.int64)
        for step, logits in enumerate(engine.all_logits([*prompt, *ids[:-1]])[len(prompt) - 1 :]):
            draw = (recording.request.params, DrawKey(recording.request.seeds[j], c, step))
            drawn = trace_draw(logits, counts, *draw)
            assert drawn.token == ids[step]
            margins.append(None if drawn.margin == math.inf else nine_digits(drawn.margin))
            rivals += [
                [step, v, tokenizer.labels[v], error] for v, error in rivals_of(drawn.token, logits, counts, *draw)
            ]
            counts[ids[step]] += 1
    return {"margins": margins, "rivals": rivals}


ERRORS = (*(10.0 ** (tenth / 10) for tenth in range(-90, -13)), REACH)
"""Those at which rivals are looked for: from 1e-9 in tenths of a decade."""


def rivals_of(
    token: int, logits: F64, counts: NDArray[np.int64], params: SamplingParams, key: DrawKey
) -> list[tuple[int, float]]:
    """The ids that a logit error up to REACH admits in the token's place, each with the least of ERRORS that does."""
    # below 2⁻¹⁰⁰ the scaled error itself would be no number; float32 may raise the temperature so far too
    params = replace(params, temperature=max(params.temperature, 2.0**-100)) if params.temperature else params

    def admitted(error: float) -> NDArray[np.bool_]:
        return admissible_tokens(logits, counts, params, key, error)

    within = admitted(REACH)
    within[token] = False
    least = [
        (v, float(f"{ERRORS[bisect_left(ERRORS, True, key=lambda error: bool(admitted(error)[v]))]:.2g}"))
        for v in np.flatnonzero(within).tolist()
    ]
    return sorted(least, key=lambda rival: (rival[1], rival[0]))


def nine_digits(value: Any) -> Any:
    """The same JSON with nine digits to every float."""
    match value:
        case float():
            return float(f"{value:.9g}")
        case dict():
            return {name: nine_digits(member) for name, member in value.items()}
        case list():
            return [nine_digits(member) for member in value]
        case _:
            return value


# ---- single draws


def sampler_document(engine: ReferenceEngine, tokenizer: Tokenizer) -> Document:
    return {"format": FORMAT, "small": list(small_draws()), "large": list(large_draws(engine, tokenizer))}


def small_draws() -> Iterator[Document]:
    """On logits that one can write down."""
    yield full(
        "every stage", "the worked example of the README: without any one stage another token would have come",
        [1, 0.5, -0.25, 2, 0], [0, 2, 0, 1, 0], DrawKey(-24, 0, 0),
        SamplingParams(temperature=0.5, top_p=0.9, frequency_penalty=0.5, presence_penalty=0.25,
                       logit_bias={1: 1.5, 3: -2.0, 4: 0.25}),
    )  # fmt: skip
    yield full(
        "a negative penalty, a large seed", "a frequency penalty below 0 adds; candidate and step are in the key",
        [0.75, 1.5, 0, -1], [1, 3, 0, 2], DrawKey(2**40 + 140, 2, 5),
        SamplingParams(temperature=0.75, top_p=0.85, frequency_penalty=-0.25, presence_penalty=1.5,
                       logit_bias={0: -0.5, 2: 1.25, 3: 0.5}),
    )  # fmt: skip
    plain = [0.5, 2, 2, -1]
    none = [0] * 4
    yield full("greedy", "the largest z after bias and penalties", [1, 0.5, -0.25, 2, 0], [0, 2, 0, 1, 0],
               DrawKey(-24, 0, 0), SamplingParams(temperature=0, frequency_penalty=0.5, presence_penalty=0.25,
                                                 logit_bias={1: 1.5, 3: -2.0, 4: 0.25}))  # fmt: skip
    yield full("greedy, a tie", "the lowest id", plain, none, DrawKey(0, 0, 0), SamplingParams(temperature=0))
    yield full(
        "top_p 0", "keeps one id of equal ones, the lowest", plain, none, DrawKey(1, 0, 0), SamplingParams(top_p=0)
    )
    equal = [1, 1, 1, 1]
    yield full("top_p reached exactly", "masses of a quarter: the rank before which the mass is just top_p is left out",
               equal, none, DrawKey(2, 0, 0), SamplingParams(top_p=0.5))  # fmt: skip
    yield full("top_p passed by a little", "with a top_p a little larger it is kept", equal, none, DrawKey(2, 0, 0),
               SamplingParams(top_p=0.5000001))  # fmt: skip
    yield full("temperature 2", "distances are halved", plain, none, DrawKey(3, 0, 0), SamplingParams(temperature=2))
    yield full("temperature 1e-300", "no floor, and 0 at every maximum: a tie is still drawn", plain, none,
               DrawKey(1, 0, 0), SamplingParams(temperature=1e-300))  # fmt: skip
    yield full("temperature 5e-324", "distances may become −∞", plain, none, DrawKey(1, 0, 0),
               SamplingParams(temperature=5e-324))  # fmt: skip
    yield full("a bias of -100", "is minus 100 and not never: here it still leads", [0, 150, 20, 30], none,
               DrawKey(4, 0, 0), SamplingParams(logit_bias={1: -100}))  # fmt: skip
    yield full("one id", "a vocabulary of one: there is no runner-up", [3], [5], DrawKey(5, 0, 0), SamplingParams())
    for seed, candidate, step in ((-1, 0, 0), (2**63 - 1, 0, 0), (-(2**63), 0, 0), (0, 127, 0), (0, 0, 4095)):
        yield full(f"seed {seed}, candidate {candidate}, step {step}", "what the noise depends on", [0, 0, 0, 0], none,
                   DrawKey(seed, candidate, step), SamplingParams())  # fmt: skip


def large_draws(engine: ReferenceEngine, tokenizer: Tokenizer) -> Iterator[Document]:
    """On logits of the embedded model, rounded to float32, so that every engine can take up the same numbers."""
    ids = tokenizer.encode(ONCE).ids
    logits = engine.last_logits(ids).astype(np.float32)
    counts = [0] * len(logits)
    first = list(np.argsort(-logits, kind="stable")[:3].tolist())
    for v, count in zip(first, (1, 3, 2), strict=True):
        counts[v] = count
    params = SamplingParams(temperature=1.1, top_p=0.95, frequency_penalty=0.5, presence_penalty=-0.5,
                            logit_bias={261: 2.5, 2047: -100.0})  # fmt: skip
    shared = [float(logit) for logit in logits]
    yield {"logits": shared, "draws": [
        selected("the law as it is", "the model's logits, drawn", shared, [0] * len(shared), DrawKey(7, 0, 0),
                 SamplingParams()),
        selected("every stage", "bias, counts, temperature and nucleus", shared, counts, DrawKey(7, 1, 3), params),
        selected("every stage, greedy", "bias and counts", shared, counts, DrawKey(7, 1, 3),
                 replace(params, temperature=0)),
        selected("a narrow nucleus", "a few are kept", shared, counts, DrawKey(-7, 0, 0),
                 replace(params, top_p=0.5, temperature=2)),
    ]}  # fmt: skip


def full(
    name: str, shows: str, logits: Sequence[float], counts: Sequence[int], key: DrawKey,
    params: SamplingParams,
) -> Document:  # fmt: skip
    """One draw with all its stages."""
    drawn = trace_draw(np.array(logits, float), np.array(counts), params, key)
    every = np.arange(len(logits))
    return {
        "name": name, "shows": shows, "logits": list(map(float, logits)), "counts": list(counts),
        **arguments(params, key), **stages(drawn, every), **outcome(drawn),
    }  # fmt: skip


def selected(
    name: str, shows: str, logits: Sequence[float], counts: Sequence[int], key: DrawKey,
    params: SamplingParams,
) -> Document:  # fmt: skip
    """One draw of many ids, with the stages of some: those of the largest score, around the nucleus' end, and some
    from everywhere."""
    drawn = trace_draw(np.array(logits), np.array(counts), params, key)
    order = np.argsort(-drawn.penalized, kind="stable")
    kept = len(order) if drawn.kept is None else int(drawn.kept.sum())
    score = drawn.penalized if drawn.score is None else drawn.score
    touched = {*(v for v, count in enumerate(counts) if count), *(params.logit_bias or {})}
    best, border = np.argsort(-score, kind="stable")[:6], order[max(kept - 2, 0) : kept + 2]
    ids = np.array(
        sorted({*touched, *best.tolist(), *order[:4].tolist(), *border.tolist(), *range(0, len(order), 256)})
    )
    return {
        "name": name, "shows": shows, "counts": {str(v): count for v, count in enumerate(counts) if count},
        **arguments(params, key), "kept_ids": kept, "ids": ids.tolist(),
        **stages(drawn, ids), **outcome(drawn),
    }  # fmt: skip


def arguments(params: SamplingParams, key: DrawKey) -> Document:
    names = ("temperature", "top_p", "frequency_penalty", "presence_penalty")
    return {
        **{name: float(getattr(params, name)) for name in names},
        "logit_bias": {str(v): float(bias) for v, bias in (params.logit_bias or {}).items()},
        "seed": str(key.seed), "candidate": key.candidate, "step": key.step,
    }  # fmt: skip


def stages(drawn: Trace, ids: NDArray[np.int64]) -> Document:
    """Every stage at `ids`; null for −∞, and for the stages that a greedy choice does not reach."""
    found: Document = {
        "logprobs": each_or_null(drawn.logprobs[ids]),
        "biased": each_or_null(drawn.biased[ids]),
        "penalized": each_or_null(drawn.penalized[ids]),
    }
    if drawn.scaled is None or drawn.kept is None or drawn.noise is None or drawn.score is None:
        return found | dict.fromkeys(("scaled", "kept", "noise", "score"))
    return found | {
        "scaled": each_or_null(drawn.scaled[ids]),
        "kept": drawn.kept[ids].tolist(),
        "noise": each_or_null(drawn.noise[ids]),
        "score": each_or_null(drawn.score[ids]),
    }


def outcome(drawn: Trace) -> Document:
    return {"token": drawn.token, "margin": null_if_infinite(drawn.margin)}


def each_or_null(values: F64) -> list[float | None]:
    return [null_if_infinite(float(value)) for value in values]


def null_if_infinite(value: float) -> float | None:
    """JSON has no infinity: it is null."""
    return value if math.isfinite(value) else None


# ---- the random function

ANSWERS = (  # key, counter; the first three are those of the law
    ((0, 0), (0, 0)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)),
    ((0, 1), (0, 0)),
    ((1, 0), (0, 0)),
    ((0, 0), (1, 0)),
    ((0, 0), (0, 1)),
    ((0x80000000, 0), (0, 0x80000000)),
    ((0x01234567, 0x89ABCDEF), (0xFEDCBA98, 0x76543210)),
)

DRAWS = (  # seed, candidate, step, ids; the first is the law's
    (-1, 2, 3, (50256,)),
    (0, 0, 0, (0, 1, 2, 2047)),
    (123, 0, 0, (0, 1, 2, 2047)),
    (123, 1, 0, (0, 1)),
    (123, 0, 1, (0, 1)),
    (2**32, 0, 0, (0, 1)),
    (2**63 - 1, 127, 4095, (0, 2**31)),
    (-(2**63), 19, 511, (0, 2**32 - 1)),
)

WORDS = (  # two words each: the ends, the middle, and what float32 or 53 bits would lose
    (0, 0), (0, 1), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFE), (0x7FFFFFFF, 0xFFFFFFFF), (0x80000000, 0),
    (0x80000000, 1), (0, 0x80000000), (0xFFFFFF00, 0), (0x551BC202, 0x844C86ED),
)  # fmt: skip


def threefry_document() -> Document:
    return {
        "format": FORMAT,
        "threefry2x32": [
            {"key": words(*key), "counter": words(*counter), "words": words(*threefry2x32(_u32(key), _u32(counter)))}
            for key, counter in ANSWERS
        ],
        "draws": [
            {
                "seed": str(seed), "candidate": candidate, "step": step,
                "key0": words(seed % 2**64 >> 32, seed % 2**32),
                "key1": words(*step_key(DrawKey(seed, candidate, step))),
                "tokens": [noise_of(v, *token_words(DrawKey(seed, candidate, step), np.array([v]))) for v in ids],
            }
            for seed, candidate, step, ids in DRAWS
        ],
        "gumbel": [noise_of(None, *_u32(pair)) for pair in WORDS],
    }  # fmt: skip


def _u32(pair: tuple[int, int]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    return np.array([pair[0]], np.uint32), np.array([pair[1]], np.uint32)


def words(x0: Any, x1: Any) -> list[str]:
    """Two words of 32 bits in hexadecimal."""
    return [f"{int(np.ravel(word)[0]):08x}" for word in (x0, x1)]


def noise_of(v: int | None, x0: NDArray[np.uint32], x1: NDArray[np.uint32]) -> Document:
    named = {} if v is None else {"id": v}
    return {**named, "words": words(x0, x1), "gumbel": float(gumbel(x0, x1)[0])}


# ---- texts and tokens

TEXTS = {
    "plain": "Once upon a time, there was a little girl.",
    "spaces": "  two  spaces   three\n\n\tand a tab ",
    "accents": "naïve café",
    "emoji": "a 😀 b 👩‍👩‍👧",
    "other scripts": "Привет, 世界! ﷽",
    "a combining mark": "e\u0301 is not é",
    "control characters": "\x00\x1f\x7f\u200b",
    "special tokens": "One.<|endoftext|>Two<|fim_prefix|> three<|fim_suffix|><|fim_middle|>",
    "nearly special": "<|endoftext |> <|endoftext|",
    "looks like a label": "bytes:\\xf0 token_id:5",
    "a replacement character": "\ufffd",
}

SEQUENCES = {  # ids, as a prompt or as a completion
    "an emoji in four tokens": (176, 257, 250, 226),
    "an emoji that stops after three": (176, 257, 250),
    "an emoji between letters": (66, 176, 257, 250, 226, 66),
    "a first byte, twice": (176, 176, 66),
    "a byte that begins nothing": (226, 66),
    "a special token within a character": (176, 257, 0, 250, 226),
    "special tokens": (66, 0, 1, 2, 3, 66),
}

BYTES = {  # pieces of bytes, in hexadecimal, as tokens bring them
    "a character in pieces": ("f0", "9f98", "80"),
    "two characters over a border": ("c3a9c3", "a9"),
    "a surrogate": ("ed", "a0", "80"),
    "the last before the surrogates": ("ed", "9f", "bf"),
    "an overlong form of two": ("c0", "80"),
    "an overlong form of three": ("e0", "80", "80"),
    "the first of three": ("e0", "a0", "80"),
    "an overlong form of four": ("f0", "80", "80", "80"),
    "the last character": ("f4", "8f", "bf", "bf"),
    "beyond the last": ("f4", "90", "80", "80"),
    "no first byte": ("f5", "80"),
    "cut short": ("e2", "82"),
    "cut short by a letter": ("e2", "82", "41"),
    "a first byte after another": ("e2", "e2", "82", "ac"),
}


def token_document(engine: ReferenceEngine, tokenizer: Tokenizer) -> Document:
    texts = []
    for name, text in TEXTS.items():
        encoded, literal = tokenizer.encode(text), tokenizer.encode_literal(text)
        texts.append({
            "name": name, "text": text, "ids": list(encoded.ids), "starts": list(encoded.starts),
            "labels": [tokenizer.labels[v] for v in encoded.ids],
            **({} if literal == encoded else {"literal_ids": list(literal.ids)}),
        })  # fmt: skip
    return {
        "format": FORMAT,
        "vocabulary": len(tokenizer.labels),
        "special": {str(v): literal for v, literal in tokenizer.special.items()},
        "end_ids": sorted(end_ids(engine, tokenizer)),
        "infill_end_ids": sorted(tokenizer.infill_ends),
        "labels": list(tokenizer.labels),
        "bytes": {str(v): tokenizer.token_bytes[v].hex(" ") for v in (0, 1, 66, 131, 176, 226, 257, 261, 300, 2047)},
        "texts": texts,
        "sequences": [sequence(name, ids, tokenizer) for name, ids in SEQUENCES.items()],
        "decoding": [{"name": name, **decoding([bytes.fromhex(piece) for piece in pieces]), "bytes": list(pieces)}
                     for name, pieces in BYTES.items()],
    }  # fmt: skip


def sequence(name: str, ids: Sequence[int], tokenizer: Tokenizer) -> Document:
    """What ids come to in a completion, and in a prompt."""
    return {
        "name": name,
        "ids": list(ids),
        "labels": [tokenizer.labels[v] for v in ids],
        "completion": decoding([tokenizer.token_bytes[v] for v in ids]),
        "prompt": decoding(list(tokenizer.prompt_pieces(ids))),
    }


def decoding(pieces: Sequence[bytes]) -> Document:
    """starts: code points before each piece · shown: the characters that are known once it has come · flush: what is
    left at the end."""
    decoder, shown, starts, text = Decoder(), [], [], ""
    for piece in pieces:
        starts.append(len(text))
        shown.append(decoder.push(piece))
        text += shown[-1]
    flush = decoder.flush()
    return {"starts": starts, "shown": shown, "flush": flush, "text": text + flush}


def to_text(document: Mapping[str, Any]) -> str:
    """JSON in ASCII, a line a value, so that a difference of two files shows which."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
