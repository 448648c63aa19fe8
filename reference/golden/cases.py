"""The requests whose answers are golden: for every field of the law what it does, its edges, and what is refused.

A request is written as a JSON object; as a text where its characters matter, or where a JSON parser of another
language might not restore it (repeated keys, integers beyond 2⁵³). Every name is a claim's handle and every `shows` the
claim: what an engine that gives another answer has got wrong.

Few tokens each, all on the embedded model. Whatever draws has a seed, or is greedy. The decisions are clear ones (no
step may come out otherwise in float32), but for the cases that are about ties: a test looks after both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

MODEL = "gnomon-stories"
VOCAB, CONTEXT = 2048, 512

ONCE = "Once upon a time"
END, PRE = 0, 1  # <|endoftext|>, <|fim_prefix|>
F0, X9F, X98, X80 = 176, 257, 250, 226  # the ids of the four bytes of 😀
C3, XA9 = 131, 106  # those of é
LETTER_A = 66


class GoldenRequest(NamedTuple):
    """request: the JSON object to send; or, as a string, the characters of the body."""

    name: str
    shows: str
    request: dict[str, Any] | str


def golden(name: str, shows: str, prompt: Any = ONCE, **fields: Any) -> GoldenRequest:
    return GoldenRequest(name, shows, {"model": MODEL, "prompt": prompt, **fields})


def golden_body(name: str, shows: str, members: str) -> GoldenRequest:
    """members: what stands in the body after the model, as it is sent."""
    return GoldenRequest(name, shows, f'{{"model": "{MODEL}", {members}}}')


def requests() -> tuple[GoldenRequest, ...]:
    """All of them, in the order of the law's sections."""
    return (
        *prompts(),
        *lengths(),
        *temperatures(),
        *nuclei(),
        *penalties(),
        *biases(),
        *seeds(),
        *stops(),
        *characters(),
        *logprobs(),
        *echoes(),
        *numbers_of_choices(),
        *suffixes(),
        *streams(),
        *near_ties(),
        *refusals(),
    )


def prompts() -> Iterator[GoldenRequest]:
    greedy = {"temperature": 0, "max_tokens": 8, "logprobs": 2}
    yield golden("prompt: a string", "a text is encoded and continued", **greedy)
    yield golden("prompt: null", "null is the beginning of a document: the end-of-text token alone", None, **greedy)
    yield golden("prompt: the empty string", '"" is what null is', "", **greedy)
    yield golden("prompt: the end-of-text id", "and so is that token's id, whose text is its literal", [END], **greedy)
    yield golden(
        "prompt: ids", "ids are used as they are, nothing is put before them", [340, 408, 258, 500, 261], **greedy
    )
    yield golden("prompt: one id", "a list of one integer is one prompt of one token", [LETTER_A], **greedy)
    yield golden(
        "prompt: a special token's literal",
        "the literal in a string is parsed as the token, and echoed as it was sent",
        "The end.<|endoftext|>One day",
        echo=True,
        **greedy,
    )
    yield golden("prompt: a list of one string", "a list of one gives what the string alone gives", [ONCE], **greedy)
    drawn = {"seed": 11, "max_tokens": 6, "logprobs": 0, "temperature": 0.9}
    yield golden(
        "prompt: several strings",
        'with a seed every element gives what it would give alone, equal elements the same; "" is one of the forms',
        ["The dog", "", "The dog"],
        **drawn,
    )
    yield golden("prompt: the second of them alone", "the beginning of a document, drawn with that seed", "", **drawn)
    yield golden("prompt: lists of ids", "as for strings", [[LETTER_A, 300], [PRE], [600, 601, 602]], **drawn)
    yield golden(
        "prompt: letters beyond ASCII",
        "offsets count code points of the prompt: an emoji is one, whatever its bytes and tokens",
        "Zoë 😀 says: “hi”",
        echo=True,
        **greedy,
    )


def lengths() -> Iterator[GoldenRequest]:
    yield golden("max_tokens: left out", "it is 16", temperature=0)
    yield golden("max_tokens: null", "null is left out", temperature=0, max_tokens=None)
    yield golden("max_tokens: 1", "one token", temperature=0, max_tokens=1, logprobs=1)
    yield golden_body("max_tokens: 3.0", "an integer written as a float is that integer",
                      f'"prompt": "{ONCE}", "temperature": 0, "max_tokens": 3.0')  # fmt: skip
    yield golden("max_tokens: 0", "nothing is sampled, the text is empty, the reason is length", max_tokens=0)
    yield golden("max_tokens: 0 with logprobs", "four empty arrays", max_tokens=0, logprobs=3)
    yield golden("max_tokens: 0 with n", "as many empty choices as were asked for", max_tokens=0, n=3)
    full = [300 + i % 700 for i in range(CONTEXT)]
    yield golden(
        "max_tokens: the last place of the context", "prompt and completion may fill it", full[:-1], max_tokens=1,
        temperature=0, logprobs=0,
    )  # fmt: skip
    yield golden("max_tokens: 0 after a full context", "a prompt may fill it alone", full, max_tokens=0)
    yield golden(
        "max_tokens: one more than fits", "refused by name, not clamped", full[:-1], max_tokens=2, temperature=0
    )
    yield golden("prompt: one more than fits", "refused by name, not cut", [*full, 300], max_tokens=0)
    end = {"temperature": 0, "logprobs": 1}
    yield golden(
        "end: by itself",
        "an end-of-sequence token ends the text: it is counted, has its place in the arrays, and adds no text",
        "They lived happily ever after.", max_tokens=5, **end,
    )  # fmt: skip
    yield golden(
        "end: on the last token allowed", "then the reason is stop, not length", "They lived happily ever after.",
        max_tokens=1, **end,
    )  # fmt: skip


def temperatures() -> Iterator[GoldenRequest]:
    for temperature in (1, 0.3, 2):
        yield golden(f"temperature: {temperature}", "divides the distances; the log-probabilities stay raw",
                     temperature=temperature, seed=5, max_tokens=8, logprobs=2)  # fmt: skip
    yield golden("temperature: left out", "it is 1", seed=5, max_tokens=8, logprobs=2)
    yield golden("temperature: 0", "the largest logit; no seed is needed", temperature=0, max_tokens=12, logprobs=1)
    yield golden("temperature: 0 with a seed and top_p", "neither is used", temperature=0, seed=99, top_p=0.1,
                 max_tokens=12, logprobs=1)  # fmt: skip
    yield golden("temperature: 1e-6", "there is no floor and no jump: nearly always the largest logit",
                 temperature=1e-6, seed=5, max_tokens=8, logprobs=1)  # fmt: skip
    yield golden("temperature: 1e-300", "beyond what float32 can hold, and no error", temperature=1e-300, seed=5,
                 max_tokens=8, logprobs=1)  # fmt: skip
    yield golden_body(
        "temperature: 1e-400",
        "a number beside 0 is not 0, though a parser may round it to 0",
        f'"prompt": "{ONCE}", "temperature": 1e-400, "seed": 5, "max_tokens": 4, "logprobs": 1',
    )


def nuclei() -> Iterator[GoldenRequest]:
    for top_p in (0, 1e-9, 0.5, 0.9, 0.999, 1):
        yield golden(f"top_p: {top_p}", "0 keeps one token, 1 all, between them those before whose mass is less",
                     top_p=top_p, temperature=1.5, seed=8, max_tokens=8, logprobs=1)  # fmt: skip
    yield golden_body("top_p: 0.99999999999999999999", "below 1, though a parser may round it to 1: nearly all kept",
                      f'"prompt": "{ONCE}", "top_p": 0.99999999999999999999, "temperature": 1.5, "seed": 8, '
                      '"max_tokens": 4, "logprobs": 1')  # fmt: skip
    yield golden("top_p: after temperature", "the mass is that of the tempered distribution", top_p=0.6,
                 temperature=1.6, seed=0, max_tokens=8, logprobs=1)  # fmt: skip
    yield golden("top_p: after the bias", "a token that was raised is kept alone, and not the one that led before",
                 top_p=0.5, seed=3, max_tokens=3, logprobs=1, logit_bias={"404": 4})  # fmt: skip


def penalties() -> Iterator[GoldenRequest]:
    again = "no no no no no no"
    penalties: dict[str, dict[str, Any]] = {
        "frequency 2": {"frequency_penalty": 2},
        "frequency -2": {"frequency_penalty": -2},
        "presence 2": {"presence_penalty": 2},
        "presence -2": {"presence_penalty": -2},
        "both, of opposite signs": {"frequency_penalty": 1.25, "presence_penalty": -0.75},
    }
    for name, fields in penalties.items():
        yield golden(f"penalties: {name}, greedy", "counts what was sampled, not the prompt; lets lp alone", again,
                     temperature=0, max_tokens=10, logprobs=1, **fields)  # fmt: skip
        yield golden(f"penalties: {name}, drawn", "the same before a draw", again, seed=21, max_tokens=10, logprobs=1,
                     **fields)  # fmt: skip
    forced = {"temperature": 0, "logit_bias": {"300": 100}, "logprobs": 0}
    yield golden("penalties: frequency counts each time", "with 60 on one id and 58 on another the first is sampled "
                 "until its count has cost it the lead", temperature=0, max_tokens=8, logprobs=0, frequency_penalty=2,
                 logit_bias={"300": 60, "301": 58})  # fmt: skip
    yield golden("penalties: presence counts once", "it costs 2 and no more, so the other never comes", temperature=0,
                 max_tokens=8, logprobs=0, presence_penalty=2, logit_bias={"300": 60, "301": 50})  # fmt: skip
    yield golden("penalties: the prompt is not counted", "else the other of the two would come first",
                 [300, 300, 300, 300], temperature=0, max_tokens=3, logprobs=0, frequency_penalty=2, presence_penalty=2,
                 logit_bias={"300": 60, "301": 50}, echo=True)  # fmt: skip
    yield golden("penalties: a forced loop", "a bias of 100 outweighs them", max_tokens=5, frequency_penalty=2,
                 presence_penalty=2, **forced)  # fmt: skip


def biases() -> Iterator[GoldenRequest]:
    yield golden("logit_bias: 100", "forces a token; its log-probability is the raw, tiny one", temperature=1, seed=1,
                 max_tokens=3, logprobs=2, logit_bias={"1000": 100})  # fmt: skip
    yield golden("logit_bias: the last id", "every id of the vocabulary can be named", temperature=0, max_tokens=2,
                 logprobs=1, logit_bias={str(VOCAB - 1): 100})  # fmt: skip
    yield golden("logit_bias: the end token raised", "an empty text of one token", temperature=0, max_tokens=5,
                 logprobs=1, logit_bias={str(END): 100})  # fmt: skip
    yield golden("logit_bias: the end token lowered", "the story goes on where it would have ended",
                 "They lived happily ever after.", temperature=0, max_tokens=6, logprobs=1,
                 logit_bias={str(END): -100})  # fmt: skip
    yield golden("logit_bias: a marker raised", "a special token that ends nothing adds no text and goes on",
                 temperature=0, max_tokens=3, logprobs=0, logit_bias={str(PRE): 100})  # fmt: skip
    yield golden("logit_bias: -100 on every id but one", "is minus 100 and not never, so the one left out leads by 100",
                 temperature=0, max_tokens=2, logprobs=0,
                 logit_bias={str(v): -100 for v in range(VOCAB) if v != LETTER_A})  # fmt: skip
    yield golden("logit_bias: -100 on every id", "changes nothing", temperature=0, max_tokens=4, logprobs=1,
                 logit_bias={str(v): -100 for v in range(VOCAB)})  # fmt: skip
    fields = {"temperature": 0, "max_tokens": 2, "logprobs": 2}
    yield golden("logit_bias: 2.25", "is added as it is, and not as 2", logit_bias={"404": 2.25}, **fields)
    yield golden("logit_bias: 2.125", "nor as 3: the other token leads still", logit_bias={"404": 2.125}, **fields)
    yield golden("logit_bias: {}", "is none", temperature=0, max_tokens=3, logit_bias={})
    yield golden("logit_bias: null", "is none", temperature=0, max_tokens=3, logit_bias=None)


def seeds() -> Iterator[GoldenRequest]:
    for seed in (0, 1, -1, 2**32, -(2**32) - 1):
        yield golden(f"seed: {seed}", "an ordinary seed: all 64 bits of it count", seed=seed, max_tokens=6, logprobs=0,
                     temperature=1.2)  # fmt: skip
    for name, seed in {"2^63 - 1": 2**63 - 1, "-2^63": -(2**63), "2^53 + 1": 2**53 + 1}.items():
        yield golden_body(
            f"seed: {name}",
            "an integer of 64 bits, not a float",
            f'"prompt": "{ONCE}", "seed": {seed}, "max_tokens": 6, "logprobs": 0, "temperature": 1.2',
        )
    yield golden("seed: null, greedy", "without a seed a greedy answer is the same every time", seed=None,
                 temperature=0, max_tokens=6)  # fmt: skip


def stops() -> Iterator[GoldenRequest]:
    greedy = {"temperature": 0, "max_tokens": 16, "logprobs": 0}
    yield golden("stop: one string", "the text ends before it; the arrays keep its tokens", stop=" girl", **greedy)
    yield golden("stop: over a token border", "begins and ends within tokens", stop="re wa", **greedy)
    yield golden("stop: at the very beginning", "the text is empty", stop=",", **greedy)
    yield golden("stop: the one that ends first", "whatever their order in the list",
                 stop=["little girl named", "girl", "a little"], **greedy)  # fmt: skip
    yield golden("stop: of those that end together the longest", "the one that begins first, so more is cut",
                 stop=["irl", "little girl", "rl"], **greedy)  # fmt: skip
    yield golden("stop: not in the prompt", "nor across its end: this is at the border of both", stop=["time,", "upon"],
                 echo=True, **greedy)  # fmt: skip
    yield golden("stop: never found", "the whole is returned, with nothing held back", stop=["zebra", "Lily. Sh!"],
                 **greedy)  # fmt: skip
    yield golden("stop: on the last token allowed", "the reason is stop", stop="there", temperature=0, max_tokens=2,
                 logprobs=0)  # fmt: skip
    yield golden("stop: a special token's literal", "ends on that token, which is counted and adds no text",
                 logit_bias={str(PRE): 100}, stop=["zebra", "<|fim_prefix|>"], temperature=0, max_tokens=3,
                 logprobs=0)  # fmt: skip
    yield golden("stop: a part of a special token's literal", "is not seen: that token adds no text",
                 logit_bias={str(PRE): 100}, stop=["fim_prefix", "|<|fim_prefix|>"], temperature=0, max_tokens=3,
                 logprobs=0)  # fmt: skip
    yield golden("stop: the empty string", "is none", stop="", temperature=0, max_tokens=6)
    yield golden("stop: the empty list", "is none", stop=[], temperature=0, max_tokens=6)
    yield golden("stop: 64 strings", "as many as that", stop=[f"{i}!" for i in range(63)] + [" was"], **greedy)
    yield golden("stop: for every candidate alone", "each ends where its own text does", "The dog", seed=7, n=3,
                 stop=[" the", ".", " a"], max_tokens=8, logprobs=0)  # fmt: skip


def characters() -> Iterator[GoldenRequest]:
    greedy = {"temperature": 0, "logprobs": 1}
    yield golden("UTF-8: one byte of a character", "what never became whole is U+FFFD at the end", max_tokens=1,
                 logit_bias={str(F0): 100}, **greedy)  # fmt: skip
    yield golden("UTF-8: the same byte again", "each but the last is known to be invalid when the next one comes",
                 max_tokens=3, logit_bias={str(F0): 100}, **greedy)  # fmt: skip
    yield golden("UTF-8: a byte that begins nothing", "is invalid at once", max_tokens=2, logit_bias={str(X80): 100},
                 **greedy)  # fmt: skip
    drawn = {str(v): 40 for v in (F0, X9F, X98, X80)}
    yield golden("UTF-8: bytes drawn at random", "an emoji over four tokens whose pieces share its offset, among bytes "
                 "that are none", temperature=2, seed=48, max_tokens=12, logprobs=0, logit_bias=drawn)  # fmt: skip
    drawn = {str(v): 40 for v in (C3, XA9)}
    yield golden("UTF-8: two bytes drawn at random", "é over two tokens", temperature=2, seed=0, max_tokens=12,
                 logprobs=2, logit_bias=drawn)  # fmt: skip
    yield golden("UTF-8: a stop string of two tokens", "is found when its last byte has come", temperature=2, seed=0,
                 max_tokens=12, logprobs=0, logit_bias=drawn, stop=["é"])  # fmt: skip
    yield golden("UTF-8: U+FFFD as a stop string", "matches where bytes are known to be invalid", max_tokens=3,
                 logit_bias={str(F0): 100}, stop="\ufffd", **greedy)  # fmt: skip
    yield golden("UTF-8: U+FFFD as a stop string at the end", "does not match what stands for bytes that still waited",
                 max_tokens=1, logit_bias={str(F0): 100}, stop="\ufffd", **greedy)  # fmt: skip
    yield golden("UTF-8: a prompt of ids that ends within a character", "it is decoded for itself: the completion's "
                 "bytes do not go on with it", [LETTER_A, C3], echo=True, max_tokens=2, logit_bias={str(XA9): 100},
                 **greedy)  # fmt: skip


def logprobs() -> Iterator[GoldenRequest]:
    fields = {"temperature": 1.3, "seed": 14, "max_tokens": 5}
    for k in (0, 1, 5, 20):
        yield golden(f"logprobs: {k}", "the k largest, and the sampled token if it is not among them; the values do "
                     "not depend on k", logprobs=k, **fields)  # fmt: skip
    yield golden("logprobs: null", "none", logprobs=None, **fields)
    yield golden("logprobs: raw", "temperature, bias, penalties and top_p change which token comes and none of its "
                 "values", temperature=0.5, seed=14, top_p=0.8, presence_penalty=1, frequency_penalty=1, max_tokens=5,
                 logprobs=3, logit_bias={"261": 2})  # fmt: skip


def echoes() -> Iterator[GoldenRequest]:
    for max_tokens in (0, 3):
        for k in (None, 0, 2):
            yield golden(f"echo: logprobs {json.dumps(k)}, max_tokens {max_tokens}", "the prompt before the completion "
                         "and its entries before the completion's; the first has no log-probability",
                         "The cat sat", echo=True, logprobs=k, max_tokens=max_tokens, temperature=0)  # fmt: skip
    fields = {"echo": True, "logprobs": 1, "temperature": 0}
    yield golden("echo: one token", "the one entry of the prompt is null", [LETTER_A], max_tokens=0, **fields)
    yield golden("echo: null", "the end-of-text token has a place and no text", None, max_tokens=2, **fields)
    yield golden("echo: ids", "are shown as their text, special ones as their literals", [340, END, LETTER_A, PRE],
                 max_tokens=1, **fields)  # fmt: skip
    yield golden("echo: several prompts and choices", "each choice begins with its own prompt", ["The sun", "A dog"],
                 n=2, echo=True, logprobs=0, max_tokens=2, temperature=1, seed=6)  # fmt: skip
    yield golden("echo: false", "only the completion, whose offsets count from the prompt's start all the same",
                 "The cat sat", echo=False, logprobs=0, max_tokens=3, temperature=0)  # fmt: skip


def numbers_of_choices() -> Iterator[GoldenRequest]:
    fields = {"temperature": 1, "max_tokens": 6, "logprobs": 0, "seed": 77}
    for n in (1, 2, 4):
        yield golden(f"n: {n}", "candidates are independent: choice 1 of 2 is choice 1 of 4", n=n, **fields)
    yield golden("n: seed 78", "choice 0 of the next seed is not choice 1 of this one", **{**fields, "seed": 78})
    yield golden("n: 2, greedy", "equal choices", n=2, temperature=0, max_tokens=4, logprobs=0)
    yield golden("n: several prompts", "index = prompt's number · n + rank", ["The sun", "A dog"], n=2, **fields)
    yield golden("best_of: 4 of which 4", "as many candidates as choices keep their order", n=4, best_of=4, **fields)
    yield golden("best_of: 4 of which 2", "the best by the mean of their raw log-probabilities; all are counted", n=2,
                 best_of=4, **fields)  # fmt: skip
    yield golden("best_of: 4 of which 1, without logprobs", "the ranking needs no logprobs in the answer", n=1,
                 best_of=4, temperature=1, max_tokens=6, seed=77)  # fmt: skip
    yield golden("best_of: by the mean and not the sum", "the best by the sum would be others, which end sooner",
                 "The dog", n=2, best_of=5, stop=[".", " the", " a"], temperature=1.2, max_tokens=10, seed=3,
                 logprobs=0)  # fmt: skip
    yield golden("best_of: raw values rank", "with the bias in the scores another would be the best", n=1, best_of=3,
                 logit_bias={"300": 5, "17": 5, "404": 3}, temperature=1, max_tokens=5, seed=1, logprobs=0)  # fmt: skip
    yield golden("best_of: several prompts and echo", "ranked for every prompt; the prompt's own values do not enter",
                 ["The sun", "A dog"], n=1, best_of=3, echo=True, **{**fields, "max_tokens": 4})  # fmt: skip
    yield golden("best_of: 0", "is n", n=2, best_of=0, **{**fields, "max_tokens": 3})
    yield golden("best_of: null", "is n", n=2, best_of=None, **{**fields, "max_tokens": 3})


def suffixes() -> Iterator[GoldenRequest]:
    fields = {"temperature": 0, "max_tokens": 12, "logprobs": 1}
    yield golden("suffix: a middle", "the prompt's ids are PRE prompt SUF suffix MID; the text is what goes between",
                 "Tom had a red ball. ", suffix=" Then they went home.", **fields)  # fmt: skip
    yield golden("suffix: its literals are text", "special tokens are not parsed in either text",
                 "A <|endoftext|> B", suffix="<|fim_middle|> C", **{**fields, "max_tokens": 3})  # fmt: skip
    yield golden("suffix: an empty prompt", "the gap is at the beginning, with no end-of-text token", "",
                 suffix=" end.", **{**fields, "max_tokens": 4})  # fmt: skip
    yield golden("suffix: a marker ends the middle", "the fill-in-the-middle ids end it as the end token does",
                 "Tom ", suffix=" home.", logit_bias={str(PRE): 100}, **fields)  # fmt: skip
    yield golden("suffix: the empty string", "is none", suffix="", temperature=0, max_tokens=3)
    yield golden("suffix: null", "is none", suffix=None, temperature=0, max_tokens=3)
    yield golden(
        "suffix: with ids", "refused: there is no text to put it after", [300, 301], suffix=" end", max_tokens=3
    )
    yield golden("suffix: with echo", "refused", suffix=" end", echo=True, max_tokens=3)


def streams() -> Iterator[GoldenRequest]:
    drawn = {"stream": True, "seed": 31, "temperature": 0.8, "max_tokens": 8}
    yield golden("stream: true", "the joined chunks are the answer; no chunk has a usage", logprobs=1, **drawn)
    yield golden("stream: include_usage", "usage is null on every chunk, then one chunk has it and no choice",
                 stream_options={"include_usage": True}, **drawn)  # fmt: skip
    yield golden("stream: include_usage false", "no usage", stream_options={"include_usage": False}, **drawn)
    yield golden("stream: null options", "a key whose value is null is as good as absent, whatever its name",
                 stream_options={"include_usage": None, "chunk": None}, **drawn)  # fmt: skip
    yield golden("stream: several choices", "one a chunk, each with its own end", ["The sun", "A dog"], n=2, logprobs=0,
                 **drawn)  # fmt: skip
    yield golden("stream: a stop string over a token border", "nothing of it is ever sent", stream=True, temperature=0,
                 max_tokens=16, logprobs=0, stop="re wa")  # fmt: skip
    yield golden("stream: characters over several tokens", "no chunk ends within one", stream=True, temperature=2,
                 seed=48, max_tokens=12, logprobs=0, logit_bias={str(v): 40 for v in (F0, X9F, X98, X80)})  # fmt: skip
    yield golden("stream: echo", "the first chunk of a choice begins with the prompt and its entries", "The cat sat",
                 echo=True, **{**drawn, "max_tokens": 2, "logprobs": 1})  # fmt: skip
    yield golden("stream: echo without sampling", "one chunk with the prompt", "The cat sat", stream=True, echo=True,
                 logprobs=1, max_tokens=0)  # fmt: skip
    yield golden("stream: false", "one answer", stream=False, temperature=0, max_tokens=3)
    yield golden("stream_options: null", "legal without stream", stream_options=None, temperature=0, max_tokens=3)
    yield golden("stream_options: {}", "legal without stream", stream_options={}, temperature=0, max_tokens=3)
    yield golden("stream_options: null members", "legal without stream: it is an empty one",
                 stream_options={"include_usage": None, "chunk": None}, temperature=0, max_tokens=3)  # fmt: skip
    yield golden("stream_options: without stream", "refused", stream_options={"include_usage": True}, max_tokens=3)
    yield golden("stream_options: an unknown member", "refused by its name", stream=True,
                 stream_options={"include_usages": True}, max_tokens=3)  # fmt: skip
    yield golden("null: unknown fields", "as good as absent", top_k=None, messages=None, temperature=0, max_tokens=3)
    yield golden("null: a bias", "as good as absent, and the others count", temperature=0, max_tokens=3, logprobs=1,
                 logit_bias={"15": None, "404": 3})  # fmt: skip
    yield golden("best_of: more than n with stream", "refused: all candidates would have to be there first", n=1,
                 best_of=2, stream=True, max_tokens=3)  # fmt: skip
    yield golden("user: a string", "changes nothing", user="someone", temperature=0, max_tokens=3)


def near_ties() -> Iterator[GoldenRequest]:
    """The first token is decided by less than float32's error: `,` (15) leads ` there` (404) by 2.15908058."""
    shows = "two tokens are level within float32's error: either may come, and what follows it is another story"
    yield golden("close: two logits", shows, temperature=0, max_tokens=4, logprobs=2, logit_bias={"404": 2.159})
    yield golden("close: two logits, without logprobs", "the same, to be seen in the text alone", temperature=0,
                 max_tokens=4, logit_bias={"404": 2.159})  # fmt: skip
    yield golden("close: two scores of a draw", shows, seed=5, max_tokens=4, logprobs=1, logit_bias={"404": 1.4389})
    shows = "the noise prefers a token at the very end of the nucleus: whether it is kept is within float32's error"
    yield golden("close: kept by a little", shows, seed=14, top_p=0.89236, max_tokens=3, logprobs=1)
    yield golden("close: left out by a little", shows, seed=14, top_p=0.89235, max_tokens=3, logprobs=1)


def refusals() -> Iterator[GoldenRequest]:
    yield GoldenRequest("refused: another model", "404, with a code", {"model": "no-such-model", "prompt": "a"})
    yield GoldenRequest("refused: no model", "400 naming it", {"prompt": "a"})
    yield GoldenRequest("refused: no prompt", "null must be written", {"model": MODEL})
    wrong: tuple[tuple[str, Any], ...] = (
        ("prompt", []), ("prompt", [[]]), ("prompt", [300, "a"]), ("prompt", ["a", 300]), ("prompt", [True]),
        ("prompt", [300.0]), ("prompt", [VOCAB]), ("prompt", [-1]), ("prompt", 7), ("prompt", {}),
        ("suffix", 1), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", "3"), ("max_tokens", True),
        ("n", 0), ("n", 129), ("n", 1.5), ("best_of", 21), ("best_of", -1), ("temperature", -0.1),
        ("temperature", 2.1), ("temperature", "1"), ("temperature", True), ("top_p", -0.1), ("top_p", 1.1),
        ("frequency_penalty", 2.5), ("frequency_penalty", -2.5), ("presence_penalty", 2.5),
        ("presence_penalty", "0"), ("logit_bias", []), ("logprobs", 21), ("logprobs", -1), ("logprobs", True),
        ("echo", "true"), ("echo", 1), ("stop", ["a", ""]), ("stop", 5), ("stop", ["a"] * 65), ("seed", 1.5),
        ("seed", "1"), ("stream", "yes"), ("stream_options", True), ("user", 5), ("top_k", 40),
    )  # fmt: skip
    for name, value in wrong:
        sent = json.dumps(value)
        sent = sent if len(sent) < 20 else f"a list of {len(value)}"
        yield golden(f"refused: {name} {sent}", "400 with the field in param", **{"prompt": "a", name: value})
    for key, bias in ((str(VOCAB), 1), ("01", 1), ("-1", 1), ("a", 1), ("300", 100.5), ("300", "1")):
        shows = "400 with the entry in param"
        yield golden(f"refused: logit_bias {json.dumps({key: bias})}", shows, "a", logit_bias={key: bias})
    yield golden("refused: best_of below n", "400 naming best_of", "a", n=3, best_of=2)
    yield golden("refused: 2,176 candidates", "400 naming prompt", ["a"] * 17, n=128)
    yield golden("refused: include_usage as a string", "400 naming the member", "a", stream=True,
                 stream_options={"include_usage": "yes"})  # fmt: skip
    for name, members in {
        "a key twice": '"prompt": "a", "seed": 1, "seed": 2',
        "a bias twice": '"prompt": "a", "logit_bias": {"300": 1, "300": 2}',
        "NaN": '"prompt": "a", "temperature": NaN',
        "an infinity": '"prompt": "a", "temperature": Infinity',
        "a number beyond floats": '"prompt": "a", "top_p": 1e400',
        "a number just above its bound": '"prompt": "a", "temperature": 2.00000000000000000001',
        "a seed of 65 bits": f'"prompt": "a", "seed": {2**63}',
        "half of a surrogate pair": '"prompt": "\\ud83d"',
    }.items():
        yield golden_body(f"refused: {name}", "400 with the field in param", members)
    for name, body in {"no JSON": "{", "an array": "[]", "nothing": ""}.items():
        yield GoldenRequest(f"refused: {name}", "a body must be a JSON object; no field is to blame", body)
