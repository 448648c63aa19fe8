"""Section 5 of the law: where a completion is cut, against a simulation that goes a character at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.completion import prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Choice, Completion
from gnomon.reference.stop import StopMatcher
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import EOT, FAKE_VOCAB, PRE, SUF, FakeEngine, always

THE = 258  # " the"
C3, A9 = 0xC3, 0xA9  # é


def ask(engine: FakeEngine, tokenizer: Tokenizer, prompt: object = "b", **fields: object) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, "temperature": 0, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def written(tokenizer: Tokenizer, script: str | Sequence[int], stop: object, **fields: object) -> Choice:
    """The choice of a model that writes these tokens (a string: its bytes) after the prompt "b"."""
    ids = list(script.encode()) if isinstance(script, str) else list(script)
    fields = {"max_tokens": len(ids), "logprobs": 0, **fields}
    return ask(FakeEngine(always(*ids)), tokenizer, stop=stop, **fields).choices[0]


def count(choice: Choice) -> int:
    assert choice.logprobs is not None
    return len(choice.logprobs.tokens)


# ---- one sentence of the law each


def test_a_stop_string_ends_the_completion_and_is_not_in_the_text(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, "hello world", "lo")
    assert (choice.text, choice.finish_reason, count(choice)) == ("hel", "stop", 5)


def test_a_stop_string_across_the_prompts_end_does_not_match(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, "axba", "ba")
    assert (choice.text, count(choice)) == ("ax", 4)
    assert written(tokenizer, "a", "ba").finish_reason == "length"


def test_a_stop_string_in_the_echoed_prompt_does_not_match(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, "axb", "b", echo=True)
    assert (choice.text, choice.finish_reason) == ("bax", "stop")


def test_the_match_with_the_earliest_end_wins(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, "xabcd", ["abcd", "c"]).text == "xab"


def test_the_match_with_the_earliest_end_wins_within_one_token(tokenizer: Tokenizer) -> None:
    for stops in itertools.permutations([" the", "he", "h"]):
        assert written(tokenizer, [THE], list(stops)).text == " t"


def test_of_the_matches_with_one_end_the_earliest_start_wins(tokenizer: Tokenizer) -> None:
    for stops in itertools.permutations(["c", "bc", "abc"]):
        choice = written(tokenizer, "xabcd", list(stops))
        assert (choice.text, count(choice)) == ("x", 4)


def test_a_stop_string_may_end_in_the_middle_of_a_token(tokenizer: Tokenizer) -> None:
    """Tokens x and " the", stop "t": the text is "x " and the array keeps the whole token, which starts within it."""
    choice = written(tokenizer, [ord("x"), THE, ord("y")], "t")
    assert (choice.text, choice.finish_reason) == ("x ", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ("x", " the")
    assert choice.logprobs.text_offset == (1, 2)


def test_how_the_text_is_cut_into_tokens_does_not_matter(tokenizer: Tokenizer) -> None:
    whole, parts = written(tokenizer, [THE], "he", max_tokens=4), written(tokenizer, " the", "he")
    assert whole.text == parts.text == " t"


def test_tokens_past_the_cut_stay_in_the_arrays_with_offsets_at_or_past_the_end(tokenizer: Tokenizer) -> None:
    """Prompt "b" and text "x", so the text ends at 2; c and d of the stop string begin at 2 and 3."""
    answer = ask(FakeEngine(always(*b"xcde")), tokenizer, stop="cd", logprobs=0, max_tokens=4)
    choice = answer.choices[0]
    assert choice.text == "x"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ("x", "c", "d")
    assert choice.logprobs.text_offset == (1, 2, 3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_pending_bytes_do_not_match(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, [C3, A9, ord("x")], "\ufffd")
    assert (choice.text, choice.finish_reason) == ("éx", "length")


def test_the_replacement_character_of_the_final_flush_does_not_match(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, [ord("a"), C3], "\ufffd")
    assert (choice.text, choice.finish_reason) == ("a\ufffd", "length")
    choice = written(tokenizer, [ord("a"), C3, EOT], "\ufffd")
    assert (choice.text, choice.finish_reason, count(choice)) == ("a\ufffd", "stop", 3)


def test_the_replacement_character_of_the_flush_completes_no_longer_stop_string(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, [ord("a"), C3], "a\ufffd")
    assert (choice.text, choice.finish_reason) == ("a\ufffd", "length")


def test_a_replacement_character_of_bytes_known_to_be_invalid_matches(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, [ord("a"), 0xFF, ord("b")], "\ufffd")
    assert (choice.text, choice.finish_reason, count(choice)) == ("a", "stop", 2)
    choice = written(tokenizer, [ord("a"), C3, ord("b"), ord("c")], "\ufffdb")
    assert (choice.text, choice.finish_reason, count(choice)) == ("a", "stop", 3)


def test_a_split_character_matches_with_its_last_byte(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, "a界b", "界")
    assert (choice.text, choice.finish_reason, count(choice)) == ("a", "stop", 4)


def test_special_tokens_are_invisible(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, [ord("a"), PRE, ord("b"), ord("c")], "ab")
    assert (choice.text, choice.finish_reason, count(choice)) == ("", "stop", 3)


LITERAL = "<|fim_prefix|>"


@pytest.mark.parametrize("stop", [LITERAL, [LITERAL], ["zz", LITERAL, "<|endoftext|>"]])
def test_a_special_tokens_literal_as_a_stop_string_ends_on_that_token(tokenizer: Tokenizer, stop: object) -> None:
    """It is counted and has its place in the arrays, as an end-of-sequence token has, and the engine's work ends."""
    engine = FakeEngine(always(ord("a"), PRE, ord("b")))
    answer = ask(engine, tokenizer, stop=stop, max_tokens=6, logprobs=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, engine.calls) == ("a", "stop", 2)
    assert choice.logprobs is not None
    assert (choice.logprobs.tokens, choice.logprobs.text_offset) == (("a", LITERAL), (1, 2))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_literal_ends_on_the_last_allowed_token_with_stop(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, [ord("a"), PRE], LITERAL).finish_reason == "stop"


@pytest.mark.parametrize("stop", ["fim_prefix", "<|fim_prefix|", LITERAL + "b", "a" + LITERAL, "a" + LITERAL + "b"])
def test_a_stop_string_with_more_or_less_than_a_literal_never_meets_it(tokenizer: Tokenizer, stop: str) -> None:
    choice = written(tokenizer, [ord("a"), PRE, ord("b")], stop)
    assert (choice.text, choice.finish_reason) == ("ab", "length")


def test_a_literal_ends_on_no_other_special_token(tokenizer: Tokenizer) -> None:
    choice = written(tokenizer, [ord("a"), SUF, PRE, ord("b")], LITERAL)
    assert (choice.text, choice.finish_reason, count(choice)) == ("a", "stop", 3)


def test_what_was_held_back_for_a_literal_is_text_when_its_token_comes(tokenizer: Tokenizer) -> None:
    script = [*b"a<|fim", PRE]
    choice = written(tokenizer, script, LITERAL)
    assert (choice.text, choice.finish_reason) == ("a<|fim", "stop")
    choice = written(tokenizer, [C3, PRE], LITERAL)
    assert (choice.text, choice.finish_reason) == ("\ufffd", "stop")


def test_each_candidate_ends_on_the_literals_token_where_it_samples_it(tokenizer: Tokenizer) -> None:
    def logits(tokens: Sequence[int]) -> NDArray[np.float64]:
        z = np.full(FAKE_VOCAB, -50.0)
        z[[ord("a"), ord("b"), PRE]] = 0
        return z

    fields: dict[str, object] = {"temperature": 1, "seed": 5, "n": 3, "best_of": 6, "max_tokens": 12, "logprobs": 0}
    answer = ask(FakeEngine(logits), tokenizer, ["b", "c"], stop=["zz", LITERAL], **fields)
    assert len({len(choice.text) for choice in answer.choices}) > 1
    for choice in answer.choices:
        assert choice.logprobs is not None
        tokens = choice.logprobs.tokens
        assert choice.text == "".join(token for token in tokens if token != LITERAL)
        assert choice.finish_reason == ("stop" if tokens[-1] == LITERAL else "length")
        assert LITERAL not in tokens[:-1]
    free = ask(FakeEngine(logits), tokenizer, ["b", "c"], **fields)
    assert any(LITERAL in choice.logprobs.tokens[:-1] for choice in free.choices if choice.logprobs)


def test_streamed_a_literal_ends_as_it_does_whole(tokenizer: Tokenizer) -> None:
    script = [*b"ab<|fim_pr", PRE, ord("c")]
    fields = {"model": "fake", "prompt": "b", "temperature": 0, "max_tokens": 20, "stop": [LITERAL, "zz"]}
    request = CompletionRequest.from_fields({**fields, "stream": True})
    chunks = [chunk.choices[0] for chunk in prepare(request, FakeEngine(always(*script)), tokenizer, "fake").chunks()]
    whole = ask(FakeEngine(always(*script)), tokenizer, **{k: v for k, v in fields.items() if k != "model"}).choices[0]
    assert "".join(chunk.text for chunk in chunks) == whole.text == "ab<|fim_pr"
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [whole.finish_reason] == ["stop"]


def test_a_split_character_survives_a_special_token_in_its_middle(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, [C3, PRE, A9, ord("x")], "x").text == "é"


def test_a_special_literal_spelled_in_ordinary_characters_matches(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, "a<|fim_prefix|>", "<|fim_prefix|>").text == "a"


def test_a_stop_string_on_the_last_allowed_token_is_a_stop(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, "abc", "bc").finish_reason == "stop"


def test_a_stop_string_is_sought_before_the_end_token_is(tokenizer: Tokenizer) -> None:
    """The stop string is complete before the end token is sampled, so that token is not."""
    choice = written(tokenizer, [ord("a"), ord("b"), EOT], "b")
    assert (choice.text, count(choice)) == ("a", 2)


@pytest.mark.parametrize("stop", [None, "", []])
def test_no_stop_string_stops_nothing(tokenizer: Tokenizer, stop: object) -> None:
    choice = written(tokenizer, "ab", stop)
    assert (choice.text, choice.finish_reason) == ("ab", "length")


def test_one_string_is_a_list_of_one(tokenizer: Tokenizer) -> None:
    assert written(tokenizer, "abc", "c") == written(tokenizer, "abc", ["c"])


def test_a_completed_stop_string_ends_the_engines_work(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"abcdefgh"))
    ask(engine, tokenizer, stop="c", max_tokens=30)
    assert engine.calls == 3


def test_stop_strings_end_one_candidate_and_leave_the_others(tokenizer: Tokenizer) -> None:
    """Prompts "b" and "bb" read the same script one token apart, so the first meets the stop string one token later."""
    engine = FakeEngine(always(*b"xxyzzzzz"))
    answer = ask(engine, tokenizer, ["b", "bb"], stop="y", max_tokens=4)
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [("xx", "stop"), ("x", "stop")]
    answer = ask(engine, tokenizer, ["bbbb", "bb"], stop="y", max_tokens=4)
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [("zzzz", "length"), ("x", "stop")]


# ---- against a simulation

PREFIXES = {
    chr(point).encode()[:size]
    for point in range(0x80, 0x110000, 0x40)
    if not 0xD800 <= point < 0xE000
    for size in range(1, len(chr(point).encode()))
}


def settled(data: bytes) -> str:
    """What is decided of the text of these bytes: all but a beginning of a character at the end."""
    waiting = next((size for size in (3, 2, 1) if data[-size:] in PREFIXES and size <= len(data)), 0)
    return data[: len(data) - waiting].decode(errors="replace")


def simulated(script: Sequence[int], stops: Sequence[str]) -> tuple[str, str, int]:
    """Text, finish_reason and number of tokens, from the law: a character at a time, all suffixes against all stops."""
    data, text = b"", ""
    for t, v in enumerate(script):
        data += bytes([v]) if v < 256 else b" the" if v == THE else b""
        for char in settled(data)[len(text) :]:
            text += char
            complete = [stop for stop in stops if text.endswith(stop)]
            if complete:
                return text[: -max(map(len, complete))], "stop", t + 1
        if v == EOT or (v == PRE and LITERAL in stops):
            return data.decode(errors="replace"), "stop", t + 1
    return data.decode(errors="replace"), "length", len(script)


TOKENS = st.sampled_from([*b"aabb", C3, A9, 0xFF, 0xE7, 0x95, 0x8C, PRE, THE])
SCRIPTS = st.builds(lambda ids, end: ids + end, st.lists(TOKENS, min_size=1, max_size=14), st.sampled_from([[], [EOT]]))
STOPS = st.lists(st.text(st.sampled_from("ab\ufffdé h"), min_size=1, max_size=4) | st.just(LITERAL), max_size=5)


@given(script=SCRIPTS, stops=STOPS, echo=st.booleans(), data=st.data())
def test_a_completion_ends_where_generating_a_character_at_a_time_would_end(
    tokenizer: Tokenizer, script: list[int], stops: list[str], echo: bool, data: st.DataObject
) -> None:
    """Exact. A third of the drawn requests are cut by a stop string and a tenth hold two that end together; a matcher
    that prefers the first of the list, the longest string or the latest end would pass with odds below 1e-6."""
    prefix = "b" if echo else ""
    text, reason, length = simulated(script, stops)
    choice = written(tokenizer, script, stops, echo=echo)
    assert choice.logprobs is not None
    offsets = choice.logprobs.text_offset[1 if echo else 0 :]
    assert (choice.text, choice.finish_reason, len(offsets)) == (prefix + text, reason, length)
    for t in range(length):
        known = b"".join(tokenizer.token_bytes[v] for v in script[:t])
        assert offsets[t] == 1 + len(settled(known))
    order = data.draw(st.permutations(stops))
    assert written(tokenizer, script, order, echo=echo) == choice


@given(text=st.text("ab", max_size=24), stops=st.lists(st.text("ab", min_size=1, max_size=6), max_size=4))
def test_the_matcher_knows_at_every_character_what_is_complete_and_what_may_become(text: str, stops: list[str]) -> None:
    """Exact, against all suffixes and all prefixes; two letters make overlaps and repetitions the rule."""
    matcher = StopMatcher(stops)
    for i in range(len(text)):
        seen = text[: i + 1]
        assert matcher.push(text[i]) == max((len(stop) for stop in stops if seen.endswith(stop)), default=0)
        begun = [size for stop in stops for size in range(len(stop)) if seen.endswith(stop[:size])]
        assert matcher.held == max(begun, default=0)
