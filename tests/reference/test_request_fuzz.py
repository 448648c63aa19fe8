"""Whatever is sent, either a CompletionRequest or an InvalidRequest that can be answered comes out.

One table says for every field which of a fixed set of JSON texts it takes; every other pair must be refused by name.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import BY_NAME, FIELDS, CompletionRequest, Limits

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)

THOUSAND = "8" * 1000
DEEP = "[" * 700 + "]" * 700

# Every text is sent as the value of every field.
TEXTS = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", THOUSAND, "-" + THOUSAND, DEEP, "null", "true", "false",
    "0", "-0", "0.0", "-0.0", "1e-400", "5e-324", "0.5", "1", "1.0", "1e0", "1.0000000000000002", "2", "2.0", "3",
    "20", "21", "128", "129", "-1", "-1.0", "-5e-324", "-2", "-3", "100", "-101",
    "9007199254740992.0", "9007199254740994.0", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "1e18", "1e19", "123456789012345678901234567890",
    '""', '"1"', '"NaN"', '"true"', '"null"', '"\\u0000"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\ude00\\ud83d"',
    "[]", "[[]]", "[null]", "[NaN]", "[true]", "[0]", "[1]", "[1.0]", "[-1]", "[1, 2]", "[[1], [2]]", "[[1], []]",
    '[""]', '["a"]', '["a", ""]', '["a", 1]', '[1, "a"]', '["\\ud800"]', "[{}]",
    "{}", '{"1": 1}', '{"1": 1, "1": 1}', '{"1": -100}', '{"1": 101}', '{"1": null}', '{"1": true}', '{"01": 1}',
    '{"a": 1}', '{"include_usage": true}', '{"include_usage": null}', '{"include_usage": 1}',
)  # fmt: skip

NULL = {"null"}
ZERO_INT = {"0", "-0", "0.0", "-0.0"}  # and not 1e-400, which is no integer, though most readers round it to one
ONE = {"1", "1.0", "1e0"}
TWO = {"2", "2.0"}
TO_20 = TWO | {"3", "20"}
LARGE = {"100", "128", "129", "21", "9007199254740992.0", "9007199254740993", "9223372036854775807"}
SMALL = {"1e-400", "5e-324", "0.5"}
STRINGS = {'""', '"1"', '"NaN"', '"true"', '"null"', '"\\u0000"', '"\\ud83d\\ude00"'}
PENALTY = NULL | ZERO_INT | SMALL | ONE | TWO | {"1.0000000000000002", "-1", "-1.0", "-5e-324", "-2"}

TAKES: dict[str, set[str]] = {
    "model": STRINGS,
    "prompt": NULL | STRINGS | {"[0]", "[1]", "[1, 2]", "[[1], [2]]", '[""]', '["a"]', '["a", ""]'},
    "suffix": NULL | STRINGS,
    "max_tokens": NULL | ZERO_INT | ONE | TO_20 | LARGE | {"9223372036854775808", "123456789012345678901234567890"},
    "n": NULL | ONE | TO_20 | {"21", "100", "128"},
    "best_of": NULL | ZERO_INT | ONE | TO_20,
    "temperature": NULL | ZERO_INT | SMALL | ONE | TWO | {"1.0000000000000002"},
    "top_p": NULL | ZERO_INT | SMALL | ONE,
    "frequency_penalty": PENALTY,
    "presence_penalty": PENALTY,
    "logit_bias": NULL | {"{}", '{"1": 1}', '{"1": -100}', '{"1": null}', '{"include_usage": null}'},
    "logprobs": NULL | ZERO_INT | ONE | TO_20,
    "echo": NULL | {"true", "false"},
    "stop": NULL | STRINGS | {"[]", '["a"]'},
    "seed": NULL | ZERO_INT | ONE | TO_20 | LARGE | {"-1", "-1.0", "-2", "-3", "-101", "-9223372036854775808"},
    "stream": NULL | {"true", "false"},
    "stream_options": NULL | {"{}", '{"1": null}', '{"include_usage": true}', '{"include_usage": null}'},
    "user": NULL | STRINGS,
}  # fmt: skip


def test_the_table_speaks_of_every_field_and_of_no_text_that_is_not_sent() -> None:
    assert TAKES.keys() == BY_NAME.keys()
    assert set().union(*TAKES.values()) <= set(TEXTS)
    assert len(set(TEXTS)) == len(TEXTS)


def fate(body: bytes, limits: Limits | None = None) -> CompletionRequest | InvalidRequest:
    """The request, or the refusal after it was found answerable. Any other exception passes through."""
    try:
        return CompletionRequest.from_json(body, limits)
    except InvalidRequest as error:
        assert_answerable(error)
        return error


def assert_answerable(error: InvalidRequest) -> None:
    assert error.status == 400
    answer = error.to_json()
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert isinstance(answer["error"]["message"], str)
    assert answer["error"]["message"].strip()
    assert answer["error"]["param"] is None or isinstance(answer["error"]["param"], str)
    json.dumps(answer, allow_nan=False).encode("ascii")
    answer["error"]["message"].encode()  # a log file in UTF-8 can take it


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_a_field_takes_exactly_the_texts_of_its_row(name: str) -> None:
    for text in TEXTS:
        fields = {"model": '"m"', "prompt": '"p"', **({"stream": "true"} if name == "stream_options" else {})}
        fields[name] = text
        result = fate(("{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}").encode())
        if isinstance(result, InvalidRequest):
            assert text not in TAKES[name], f"{name}: {text} is legal, but: {result.message}"
            assert result.param is not None
            assert result.param.split(".")[0] == name, f"{text}: the message blames {result.param}"
        else:
            assert text in TAKES[name], f"{name}: {text[:60]} is illegal, but was read as {result}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.text(st.characters(categories=["Cs", "Ll"]), max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
names = st.sampled_from([field.name for field in FIELDS]) | st.text(max_size=6)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_request_or_a_400(body: bytes) -> None:
    """Nearly every example is refused: this asks only that nothing but InvalidRequest is ever raised."""
    assert isinstance(fate(body), CompletionRequest | InvalidRequest)


@quick
@given(json_values)
def test_any_json_value_as_a_body_ends_in_a_request_or_a_400(value: Any) -> None:
    """Without model and prompt nothing can be accepted: chance cannot explain an accepted body."""
    result = fate(json.dumps(value).encode())
    assert isinstance(result, InvalidRequest) or {"model", "prompt"} <= value.keys()


@quick
@given(st.dictionaries(names, json_values, max_size=6))
def test_any_values_under_the_fields_names_end_in_a_request_or_a_400(changes: dict[str, Any]) -> None:
    """A refusal names one of the fields sent; a random blame would hit one in 0 to 6 of 18 names, 60 times."""
    body = {"model": "m", "prompt": "p", **changes}
    result = fate(json.dumps(body).encode())
    if isinstance(result, InvalidRequest):
        assert result.param is not None
        related = {"n": "best_of", "stream": "best_of", "best_of": "prompt"}  # judged together, blamed on the other
        blamed = set(changes) | {related[name] for name in changes if name in related} | {"prompt"}
        assert result.param in blamed or any(result.param.startswith(f"{name}.") for name in changes)
    else:
        assert_sound(result)


GOOD: dict[str, Any] = {
    "model": "m", "prompt": [[1, 2], [3]], "suffix": "", "max_tokens": 5, "n": 2, "best_of": 3, "temperature": 0.5,
    "top_p": 0.9, "frequency_penalty": -1, "presence_penalty": 1.5, "logit_bias": {"1": 2, "50256": -100},
    "logprobs": 3, "echo": True, "stop": ["a", "\n\n"], "seed": -1, "stream": False, "stream_options": None,
    "user": "u",
}  # fmt: skip


def assert_sound(request: CompletionRequest) -> None:
    """Every field within the law's range and of exactly its type: what the engines may rely on."""
    assert type(request.model) is str
    assert request.prompts
    for prompt in request.prompts:
        assert type(prompt) is str or (prompt and all(type(v) is int and v >= 0 for v in prompt))
    assert type(request.suffix) is str
    assert type(request.max_tokens) is int
    assert request.max_tokens >= 0
    assert type(request.n) is int
    assert 1 <= request.n <= 128
    assert request.best_of is None or (type(request.best_of) is int and 0 <= request.best_of <= 20)
    assert request.n <= request.candidates
    assert len(request.prompts) * request.candidates <= 2048
    for value, low, high in (
        (request.temperature, 0, 2),
        (request.top_p, 0, 1),
        (request.frequency_penalty, -2, 2),
        (request.presence_penalty, -2, 2),
        *((bias, -100, 100) for bias in (request.logit_bias or {}).values()),
    ):
        assert type(value) is float
        assert math.isfinite(value)
        assert low <= value <= high
    assert all(type(v) is int and v >= 0 for v in request.logit_bias or {})
    assert request.logprobs is None or (type(request.logprobs) is int and 0 <= request.logprobs <= 20)
    for flag in (request.echo, request.stream, request.include_usage):
        assert type(flag) is bool
    assert request.include_usage <= request.stream
    assert len(request.stop) <= 64
    assert all(type(text) is str and text for text in request.stop)
    assert request.seed is None or (type(request.seed) is int and -(2**63) <= request.seed < 2**63)
    assert not (request.stream and request.candidates > request.n)


def test_the_good_body_is_good() -> None:
    result = fate(json.dumps(GOOD).encode())
    assert isinstance(result, CompletionRequest)
    assert_sound(result)
    assert result.best_of == 3


@quick
@given(st.sampled_from(sorted(GOOD)), json_values)
def test_one_changed_field_is_read_or_blamed(name: str, value: Any) -> None:
    """The blame is on the changed field or, where fields are judged together, on its partner."""
    result = fate(json.dumps({**GOOD, name: value}).encode())
    if isinstance(result, InvalidRequest):
        partner = {"n": "best_of", "stream": "best_of", "best_of": "best_of"}.get(name, name)
        assert (result.param or "").split(".")[0] in (name, partner)
    else:
        assert_sound(result)


@quick
@given(st.data())
def test_a_body_cut_or_overwritten_anywhere_ends_in_a_request_or_a_400(data: st.DataObject) -> None:
    """Random bytes over a good body reach the number, string and escape readers that random bodies do not."""
    body = bytearray(json.dumps(GOOD).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        tokens = [b"NaN", b"1e999", b"-", b"{", b"}", b"[", b"]", b",", b'"', b"\\ud800", b"\xff", b"9" * 50, b"\x00"]
        put = data.draw(st.binary(max_size=2) | st.sampled_from(tokens))
        body[at : at + data.draw(st.integers(0, 4))] = put
    result = fate(bytes(body[: data.draw(st.integers(len(body) - 3, len(body)))]))
    if isinstance(result, CompletionRequest):
        assert_sound(result)


@quick
@given(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(GOOD)))
def test_a_repeated_field_is_always_refused(first: str, second: str) -> None:
    """One body per pair; equal or different values, adjacent or not."""
    pairs = [*GOOD.items(), (first, GOOD[first]), (second, None)]
    text = "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"
    result = fate(text.encode())
    assert isinstance(result, InvalidRequest)
    assert result.param in (first, second)


@quick
@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["temperature", "top_p", "presence_penalty"]))
def test_a_number_in_range_is_restored_exactly_and_any_other_refused(value: float, name: str) -> None:
    low, high = {"temperature": (0, 2), "top_p": (0, 1), "presence_penalty": (-2, 2)}[name]
    result = fate(json.dumps({"model": "m", "prompt": "p", name: value}).encode())
    if low <= value <= high:
        assert isinstance(result, CompletionRequest)
        assert getattr(result, name) == value
    else:
        assert isinstance(result, InvalidRequest)
        assert result.param == name


@quick
@given(st.integers(-(2**70), 2**70))
def test_a_seed_is_kept_to_the_last_bit_or_refused(seed: int) -> None:
    result = fate(json.dumps({"model": "m", "prompt": "p", "seed": seed}).encode())
    if -(2**63) <= seed < 2**63:
        assert isinstance(result, CompletionRequest)
        assert result.seed == seed
    else:
        assert isinstance(result, InvalidRequest)
        assert result.param == "seed"


@quick
@given(st.lists(st.integers(0, 70), max_size=3), st.integers(0, 140), st.integers(0, 25), st.booleans())
def test_narrower_limits_only_refuse_more(sizes: list[int], n: int, logprobs: int, stream: bool) -> None:
    """Whatever the published API's limits accept, the law's accept with the same outcome."""
    stop = [f"s{i}" for i in range(sum(sizes))]
    body = {"model": "m", "prompt": ["p"] * (1 + len(sizes) * 20), "n": n, "logprobs": logprobs, "stop": stop}
    raw = json.dumps({**body, "stream": stream}).encode()
    wide, narrow = fate(raw), fate(raw, Limits.openai())
    if isinstance(narrow, CompletionRequest):
        assert wide == narrow
        assert logprobs <= 5
        assert len(stop) <= 4
    if isinstance(wide, CompletionRequest) and logprobs <= 5 and len(stop) <= 4:
        assert isinstance(narrow, CompletionRequest)
