"""Section 1 of the law, read off `FIELDS` where a table says it, and section 12 as far as a request decides it.

Every field is tried at its default, at both ends of its range and just beyond; a refusal must name the field and show
what was sent and what is allowed.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import pytest

from gnomon.reference.body.reading import parse_json
from gnomon.reference.body.shown import key_of
from gnomon.reference.checkpoint.entries import LARGEST
from gnomon.reference.errors import InvalidRequest, ModelNotFound, RequestError
from gnomon.reference.request import BY_NAME, FIELDS, ID_DIGITS, CompletionRequest, Limits

BASE: dict[str, str] = {"model": '"m"', "prompt": '"p"'}


def body_of(**fields: str) -> bytes:
    """A body from field → JSON text, so that a test can send what no Python value can stand for."""
    sent = {**BASE, **fields}
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in sent.items()) + "}").encode()


def read(limits: Limits | None = None, /, **fields: str) -> CompletionRequest:
    return CompletionRequest.from_json(body_of(**fields), limits)


def refused(limits: Limits | None = None, /, **fields: str) -> InvalidRequest:
    return refused_body(body_of(**fields), limits)


def refused_body(body: bytes, limits: Limits | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        CompletionRequest.from_json(body, limits)
    assert caught.value.status == 400
    return caught.value


# ---- the table itself

LAW_FIELDS = {
    "model", "prompt", "suffix", "max_tokens", "n", "best_of", "temperature", "top_p", "frequency_penalty",
    "presence_penalty", "logit_bias", "logprobs", "echo", "stop", "seed", "stream", "stream_options", "user",
}  # fmt: skip


def test_fields_are_exactly_those_of_the_law() -> None:
    assert {field.name for field in FIELDS} == LAW_FIELDS
    assert len(FIELDS) == len(BY_NAME) == len(LAW_FIELDS)


def test_only_model_and_prompt_are_required() -> None:
    assert {field.name for field in FIELDS if field.required} == {"model", "prompt"}
    for name in ("model", "prompt"):
        rest = {key: text for key, text in BASE.items() if key != name}
        body = "{" + ", ".join(f'"{key}": {text}' for key, text in rest.items()) + "}"
        error = refused_body(body.encode())
        assert error.param == name
        assert BY_NAME[name].allowed in error.message


def test_defaults_are_those_of_the_law() -> None:
    request = read()
    assert request == CompletionRequest(
        model="m", prompts=("p",), suffix="", max_tokens=16, n=1, best_of=None, temperature=1.0, top_p=1.0,
        frequency_penalty=0.0, presence_penalty=0.0, logit_bias=None, logprobs=None, echo=False, stop=(), seed=None,
        stream=False, include_usage=False, user=None,
    )  # fmt: skip
    documented = {"max_tokens": 16, "n": 1, "temperature": 1, "top_p": 1, "frequency_penalty": 0,
                  "presence_penalty": 0, "logit_bias": {}, "echo": False, "stream": False}  # fmt: skip
    for field in FIELDS:
        if not field.required:
            assert field.default == documented.get(field.name), field.name


def test_sending_a_documented_default_is_leaving_the_field_out() -> None:
    for field in FIELDS:
        if field.required:
            continue
        sent, absent = read(**{field.name: json.dumps(field.default)}), read()
        for name in CompletionRequest.__slots__:
            assert (getattr(sent, name) or None) == (getattr(absent, name) or None), (field.name, name)


def test_null_on_an_optional_field_is_leaving_it_out() -> None:
    for field in FIELDS:
        if not field.required:
            assert read(**{field.name: "null"}) == read(), field.name
    assert read(**{field.name: "null" for field in FIELDS if not field.required}) == read()


def test_null_prompt_is_a_prompt_and_null_model_is_none() -> None:
    assert read(prompt="null").prompts == ("",)
    assert refused(model="null").param == "model"


def test_where_of_every_field_names_something_that_exists() -> None:
    for field in FIELDS:
        module, *path = field.where.split(".")
        found: Any = importlib.import_module(f"gnomon.reference.{module}")
        for part in path:
            assert hasattr(found, part), f"{field.name}: {field.where} does not exist"
            found = getattr(found, part)
        assert callable(found), field.where


def test_section_of_every_field_exists_in_the_law() -> None:
    for field in FIELDS:
        assert {int(part) for part in field.section.split(", ")} <= set(range(1, 14)), field.name


# ---- ranges: field → (legal JSON texts with their values, illegal JSON texts)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
RANGES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "model": ({'""': "", '"a/b"': "a/b"}, ("1", "[]", "{}", "true")),
    "suffix": ({'""': "", '"s"': "s"}, ("0", "false", "[]", '["s"]')),
    "max_tokens": ({"0": 0, "1": 1, "16.0": 16, "1000000000000": 10**12}, ("-1", "0.5", '"16"', "true")),
    "n": ({"1": 1, "128": 128, "2.0": 2}, ("0", "129", "1.5", "-1", '"1"', "true", "[1]")),
    "best_of": ({"0": 0, "1": 1, "20": 20, "3.0": 3}, ("-1", "21", "1.5", '"2"', "false")),
    "temperature": ({"0": 0.0, "2": 2.0, "1e-300": 1e-300, "5e-324": 5e-324, "0.7": 0.7},
                    ("-0.001", "2.0000000000000005", "-5e-324", '"1"', "true", "[]")),
    "top_p": ({"0": 0.0, "1": 1.0, "0.5": 0.5}, ("-5e-324", "1.0000000000000003", "2", '"1"', "true", "{}")),
    "frequency_penalty": ({"-2": -2.0, "2": 2.0, "0": 0.0}, ("-2.0000000000000005", "2.0000000000000005", "true")),
    "presence_penalty": ({"-2": -2.0, "2": 2.0, "0": 0.0}, ("-2.0000000000000005", "2.0000000000000005", "false")),
    "logprobs": ({"0": 0, "1": 1, "20": 20, "5.0": 5}, ("-1", "21", "1.5", "true", "false", '"5"')),
    "echo": ({"true": True, "false": False}, ("0", "1", '"true"', "[]")),
    "stream": ({"true": True, "false": False}, ("0", "1", '"false"', "{}")),
    "seed": ({"0": 0, "-1": -1, str(INT64_MAX): INT64_MAX, str(INT64_MIN): INT64_MIN, "7.0": 7},
             (str(INT64_MAX + 1), str(INT64_MIN - 1), "0.5", '"7"', "true")),
    "user": ({'"u"': "u", '""': ""}, ("1", "true", "[]", "{}")),
}  # fmt: skip

LEGAL = [(name, text, value) for name, (legal, _) in RANGES.items() for text, value in legal.items()]
ILLEGAL = [(name, text) for name, (_, illegal) in RANGES.items() for text in illegal]


@pytest.mark.parametrize(("name", "text", "value"), LEGAL, ids=lambda part: str(part)[:24])
def test_both_ends_of_every_range_are_accepted(name: str, text: str, value: object) -> None:
    got = getattr(read(**{name: text}), BY_NAME[name].attribute)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(("name", "text"), ILLEGAL)
def test_beyond_a_range_the_field_is_named_with_what_was_sent_and_what_is_allowed(name: str, text: str) -> None:
    error = refused(**{name: text})
    assert error.param == name
    assert error.message.startswith(f"{name}:")
    assert json.dumps(json.loads(text)) in error.message, "what was sent"
    ends = [str(BY_NAME[name].schema[end]) for end in ("minimum", "maximum") if end in BY_NAME[name].schema]
    words = {"string": ["string"], "boolean": ["true", "false"]}.get(BY_NAME[name].type, [])
    for allowed in [*ends, *words]:
        assert allowed in error.message, "what is allowed"


def test_an_integral_float_is_an_integer_up_to_two_to_the_53_and_not_beyond() -> None:
    assert read(seed="9007199254740992.0").seed == 2**53
    assert read(seed="-9007199254740992.0").seed == -(2**53)
    assert read(seed="9.007199254740992e15").seed == 2**53
    assert read(max_tokens="-0.0").max_tokens == 0
    assert refused(seed="9007199254740994.0").param == "seed"
    assert refused(seed="-9007199254740994.0").param == "seed"
    assert refused(max_tokens="1e16").param == "max_tokens"


def test_large_integers_written_as_integers_keep_every_digit() -> None:
    assert read(seed="9007199254740993").seed == 2**53 + 1
    assert read(seed=str(INT64_MAX)).seed == INT64_MAX


def test_seed_minus_one_is_an_ordinary_seed_and_not_absent() -> None:
    assert read(seed="-1").seed == -1
    assert read().seed is None


def test_logprobs_zero_is_not_off() -> None:
    assert read(logprobs="0").logprobs == 0
    assert read().logprobs is None


@pytest.mark.parametrize("limits", [Limits(), Limits.openai()])
@pytest.mark.parametrize("text", ["false", "true", '"off"', "21"])
def test_whoever_means_logprobs_off_is_told_null_and_that_0_is_on(text: str, limits: Limits) -> None:
    message = refused(limits, logprobs=text).message
    assert f"logprobs: {text} is not allowed; give an integer from 0 to " in message
    assert "or null to leave it off (0 does not: it reports the sampled tokens)" in message


def test_the_message_for_a_wrong_type_says_where_null_would_do() -> None:
    for name in ("suffix", "best_of", "logprobs", "stop", "seed", "stream_options", "user"):
        assert BY_NAME[name].default is None
        assert ", or null" in refused(**{name: "true"}).message, name


@pytest.mark.parametrize(
    ("name", "text"),
    [("n", "1.00000000000000000001"), ("temperature", "2.00000000000000000001"), ("top_p", "-1e-400"),
     ("top_p", "1.00000000000000000001"), ("seed", "9007199254740993.0"), ("max_tokens", "1e-400")],
)  # fmt: skip
def test_a_number_beside_an_integer_is_refused_with_the_digits_that_were_sent(name: str, text: str) -> None:
    assert f"{name}: {text} is not allowed" in refused(**{name: text}).message
    assert ("without a decimal point" in refused(**{name: text}).message) == (name == "seed")


def test_user_is_accepted_and_changes_nothing_else() -> None:
    assert read(user='"someone"') == CompletionRequest("m", ("p",), user="someone")


# ---- prompts


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ('"a"', ("a",)),
        ('""', ("",)),
        ("null", ("",)),
        ('["a"]', ("a",)),
        ('["a", "", "a"]', ("a", "", "a")),
        ("[1, 2, 3]", ((1, 2, 3),)),
        ("[0]", ((0,),)),
        ("[[1, 2], [3]]", ((1, 2), (3,))),
        ('"\\ud83d\\ude00"', ("\U0001f600",)),
    ],
)
def test_every_form_of_prompt_is_read(text: str, prompts: tuple[Any, ...]) -> None:
    assert read(prompt=text).prompts == prompts


@pytest.mark.parametrize(
    "text",
    [
        "[]", "[[]]", "[[1], []]", '["a", 1]', '[1, "a"]', '[[1], "a"]', '["a", [1]]', "[1, [2]]", "[[1], 2]",
        "[true]", "[1, true]", "[[false]]", "[1.0]", "[[1.0]]", "[1, 2.0]", "[-1]", "[[0, -1]]", "[null]", "[[null]]",
        '["a", null]', "[{}]", "{}", "1", "true", "0.5", "[[[1]]]", "[NaN]", "[1, NaN]", "[[1e400]]", "NaN",
        "[" + "1" * 1000 + "]", '["\\ud800"]', '"\\udc00"',
    ],
)  # fmt: skip
def test_every_other_form_of_prompt_is_refused_by_name(text: str) -> None:
    error = refused(prompt=text)
    assert error.param == "prompt"
    assert error.message.startswith("prompt")
    assert "list" in error.message or "string" in error.message or "token id" in error.message


def test_a_refused_prompt_element_is_shown_with_its_place() -> None:
    assert "-7" in refused(prompt="[[1], [2, -7]]").message
    assert "prompt[1]" in refused(prompt="[[1], [2, -7]]").message


# ---- n, best_of, stream, candidates


@pytest.mark.parametrize(
    ("n", "best_of", "candidates"), [("1", "null", 1), ("3", "0", 3), ("3", "3", 3), ("3", "20", 20), ("128", "0", 128)]
)
def test_best_of_null_and_zero_mean_n(n: str, best_of: str, candidates: int) -> None:
    assert read(n=n, best_of=best_of).candidates == candidates


def test_best_of_below_n_is_refused() -> None:
    error = refused(n="3", best_of="2")
    assert error.param == "best_of"
    assert "2" in error.message
    assert "n = 3" in error.message
    assert refused(n="21", best_of="20").param == "best_of"


def test_best_of_above_n_is_refused_with_stream_only() -> None:
    assert read(n="2", best_of="3").candidates == 3
    assert refused(n="2", best_of="3", stream="true").param == "best_of"
    assert read(n="2", best_of="2", stream="true").candidates == 2
    assert read(n="2", best_of="0", stream="true").candidates == 2


def test_too_many_candidates_name_prompt_with_400() -> None:
    assert len(read(n="128", prompt=json.dumps(["a"] * 16)).prompts) == 16
    error = refused(n="128", prompt=json.dumps(["a"] * 17))
    assert error.param == "prompt"
    assert "2048" in error.message
    assert "2176" in error.message
    assert len(read(prompt=json.dumps(["a"] * 2048)).prompts) == 2048
    assert refused(prompt=json.dumps([[1]] * 2049)).param == "prompt"
    assert refused(best_of="20", prompt=json.dumps(["a"] * 103)).param == "prompt"


def test_the_limit_on_candidates_is_the_servers() -> None:
    assert read(Limits(candidates=3), n="3").n == 3
    assert refused(Limits(candidates=3), n="4").param == "prompt"


# ---- stream_options


def test_stream_options_empty_or_null_are_legal_without_stream() -> None:
    for text in ("null", "{}"):
        for stream in ("true", "false", "null"):
            assert read(stream=stream, stream_options=text).include_usage is False


@pytest.mark.parametrize("text", ['{"include_usage": true}', '{"include_usage": false}'])
def test_stream_options_not_empty_need_stream(text: str) -> None:
    error = refused(stream_options=text)
    assert error.param == "stream_options"
    assert "stream" in error.message
    assert refused(stream="false", stream_options=text).param == "stream_options"
    assert read(stream="true", stream_options=text).stream


def test_include_usage_is_a_boolean_or_null() -> None:
    assert read(stream="true", stream_options='{"include_usage": true}').include_usage is True
    assert read(stream="true", stream_options='{"include_usage": false}').include_usage is False
    assert read(stream="true", stream_options='{"include_usage": null}').include_usage is False
    for text in ("1", "0", '"true"', "[]", "NaN"):
        error = refused(stream="true", stream_options=f'{{"include_usage": {text}}}')
        assert error.param == "stream_options.include_usage"
        assert "true or false" in error.message


@pytest.mark.parametrize("value", ["true", "false", "0", "[]", '{"y": null}', '{"a": 1, "a": 1}', "NaN", '"\\ud800"'])
def test_unknown_keys_inside_stream_options_are_refused_by_name(value: str) -> None:
    for stream in ("true", "false", "null"):
        error = refused(stream=stream, stream_options=f'{{"include_usage": true, "include_usages": {value}}}')
        assert error.param == "stream_options.include_usages"
        assert error.message.startswith("stream_options.include_usages: unknown field; ")
        assert "stream_options has include_usage" in error.message


@pytest.mark.parametrize("text", ["[]", "0", "1", "true", "false", '""', '"x"'])
def test_stream_options_of_another_type_are_refused(text: str) -> None:
    assert refused(stream="true", stream_options=text).param == "stream_options"
    assert refused(stream_options=text).param == "stream_options"


# ---- logit_bias


def test_logit_bias_keys_become_ids_and_values_floats() -> None:
    bias = read(logit_bias='{"0": -100, "10": 100, "50256": 0.5, "7": -0.0}').logit_bias
    assert bias == {0: -100.0, 10: 100.0, 50256: 0.5, 7: 0.0}
    assert all(type(value) is float for value in bias.values())


@pytest.mark.parametrize(
    "key", ["", "00", "01", "-1", "+1", "1.0", "1e3", " 1", "1 ", "1\\n", "a", "0x10", "١", "²", "１", "None", "1_0"]
)
def test_logit_bias_keys_are_0_or_digits_without_a_leading_0(key: str) -> None:
    error = refused(logit_bias=f'{{"5": 1, "{key}": 1}}')
    assert error.param == "logit_bias." + json.loads(f'"{key}"')
    assert "0" in error.message


def test_a_logit_bias_key_beyond_every_vocabulary_is_refused_before_it_is_kept() -> None:
    """Of 18 digits an attacker can choose thousands that collide in a dict; of 8 no more than some hundred."""
    assert LARGEST < 10**ID_DIGITS < 2**27
    assert read(logit_bias=f'{{"{10**ID_DIGITS - 1}": 1}}').logit_bias == {10**ID_DIGITS - 1: 1}
    error = refused(logit_bias=f'{{"{10**ID_DIGITS}": 1}}')
    assert error.message == f"logit_bias.{10**ID_DIGITS}: no vocabulary is so large"


@pytest.mark.parametrize(
    "value", ["-100.00000000000001", "100.00000000000001", "1e400", "NaN", "true", '"1"', "[]", "{}"]
)
def test_logit_bias_values_beyond_100_or_of_another_type_name_their_entry(value: str) -> None:
    error = refused(logit_bias=f'{{"5": 1, "50256": {value}}}')
    assert error.param == "logit_bias.50256"
    assert "-100 to 100" in error.message


def test_a_logit_bias_key_of_absurd_length_names_its_entry() -> None:
    key = "9" * 5000
    assert refused(logit_bias=f'{{"{key}": 1}}').param == f"logit_bias.{key}"


@pytest.mark.parametrize("text", ["[]", "[1]", "0", "true", '""', '"{}"'])
def test_logit_bias_of_another_type_is_refused(text: str) -> None:
    assert refused(logit_bias=text).param == "logit_bias"


def test_logit_bias_empty_is_legal() -> None:
    assert not read(logit_bias="{}").logit_bias


# ---- stop


@pytest.mark.parametrize(
    ("text", "stop"), [('""', ()), ("[]", ()), ("null", ()), ('"a"', ("a",)), ('["a", "bc"]', ("a", "bc"))]
)
def test_stop_forms(text: str, stop: tuple[str, ...]) -> None:
    assert read(stop=text).stop == stop


def test_stop_takes_64_strings_and_not_65() -> None:
    strings = [f"s{i}" for i in range(65)]
    assert read(stop=json.dumps(strings[:64])).stop == tuple(strings[:64])
    error = refused(stop=json.dumps(strings))
    assert error.param == "stop"
    assert "64" in error.message


@pytest.mark.parametrize(
    "text", ['[""]', '["a", ""]', "[1]", "[null]", '[["a"]]', "1", "true", "{}", '"\\ud800"', "NaN"]
)
def test_stop_of_any_other_form_is_refused(text: str) -> None:
    error = refused(stop=text)
    assert error.param == "stop"
    assert "string" in error.message


@pytest.mark.parametrize(
    ("name", "allowed", "refused_", "sent"),
    [
        ("stop", json.dumps("x" * 1024), json.dumps("x" * 1025), "1025"),
        ("stop", json.dumps("\U0001f600" * 1024), json.dumps("\U0001f600" * 1025), "1025"),
        ("stop", json.dumps(["a", "x" * 1024]), json.dumps(["a", "x" * 1025]), "string 1 of the list has 1025"),
        ("user", json.dumps("u" * 1024), json.dumps("u" * 1025), "1025"),
    ],
)
def test_a_stop_string_and_a_user_have_at_most_1024_characters(
    name: str, allowed: str, refused_: str, sent: str
) -> None:
    read(**{name: allowed})
    error = refused(**{name: refused_})
    assert error.param == name
    assert sent in error.message
    assert "at most 1024" in error.message
    assert len(error.message) < 200


def test_a_bias_has_at_most_65536_entries_and_nulls_are_none() -> None:
    entries = {str(v): 1 for v in range(65_536)}
    assert len(read(logit_bias=json.dumps({**entries, "70000": None})).logit_bias or {}) == 65_536
    error = refused(logit_bias=json.dumps({**entries, "70000": 0}))
    assert error.param == "logit_bias"
    assert error.message == "logit_bias: 65537 entries; at most 65536 are allowed"


# ---- limits


def test_openai_limits_narrow_logprobs_and_stop() -> None:
    narrow = Limits.openai()
    assert read(narrow, logprobs="5").logprobs == 5
    assert read(narrow, stop='["a", "b", "c", "d"]').stop == ("a", "b", "c", "d")
    error = refused(narrow, logprobs="6")
    assert error.param == "logprobs"
    assert "6" in error.message
    assert "5" in error.message
    error = refused(narrow, stop='["a", "b", "c", "d", "e"]')
    assert error.param == "stop"
    assert "4" in error.message
    assert read(logprobs="6").logprobs == 6


def test_openai_limits_change_nothing_else() -> None:
    assert Limits.openai() == Limits(logprobs=5, stop=4, candidates=2048)
    assert Limits() == Limits(logprobs=20, stop=64, candidates=2048)


# ---- the body


@pytest.mark.parametrize("name", ["unknown", "Model", "max_completion_tokens", "top_k", "", "ünknown", "stream_option"])
def test_unknown_fields_are_refused_by_name(name: str) -> None:
    for value in ("0", "false", "NaN", '{"a": 1, "a": 1}'):
        error = refused(**{name: value})
        assert error.param == name
        assert error.message.startswith(f"{key_of(name)}: unknown field")
        assert "temperature" in error.message, "the fields there are"


def fate(**fields: str) -> CompletionRequest | str:
    """The request, or why it is none."""
    try:
        return read(**fields)
    except InvalidRequest as error:
        return error.message


@pytest.mark.parametrize("name", ["unknown", "top_k", "", "ünknown", "messages", "tools", "x" * 5000])
def test_null_is_as_good_as_absent_whatever_its_name(name: str) -> None:
    assert fate(**{name: "null"}) == read()
    assert fate(stream="true", stream_options=f'{{"{name}": null}}') == read(stream="true")
    assert fate(stream_options=f'{{"{name}": null, "include_usage": null}}') == read(), "and so it is an empty one"
    assert fate(logit_bias=f'{{"{name}": null, "5": 1, "99999": null}}') == read(logit_bias='{"5": 1}')


def test_null_is_no_excuse_for_a_key_twice_or_half_a_surrogate_pair() -> None:
    for member in ('"x": null, "x": null', '"x": 1, "x": null', '"\\ud800": null'):
        assert refused_body(body_of()[:-1] + f", {member}}}".encode()).param in ("x", "\ud800")
        error = refused(stream_options=f"{{{member}}}")
        assert error.param in ("stream_options.x", "stream_options.\ud800")


def test_all_unknown_names_are_listed_at_once_each_with_the_nearest_known_one() -> None:
    error = refused(top_p="0.5", maxTokens="1", foo="2", stops='"a"', stream="true", stream_options='{"usage": true}')
    assert error.param == "maxTokens"
    said = error.message.split("; ")
    assert said[0] == "maxTokens: unknown field, and so are foo, stops, stream_options.usage"
    assert said[1:3] == ["maxTokens is near max_tokens", "stops is near stop"]
    assert not any(part.startswith("foo is near") for part in said)
    assert said[-2].startswith("the fields are model, prompt,")
    assert said[-1] == "stream_options has include_usage"


@pytest.mark.parametrize(
    ("sent", "ours"),
    [("maxTokens", "max_tokens"), ("max_completion_tokens", "max_tokens"), ("TOP_P", "top_p"),
     ("top_logprobs", "logprobs"), ("freqency_penalty", "frequency_penalty"), ("bestof", "best_of"), ("grammar", None),
     ("x" * 65, None)],
)  # fmt: skip
def test_the_nearest_name_is_told_if_one_is_near(sent: str, ours: str | None) -> None:
    message = refused(**{sent: "1"}).message
    assert (" is near " in message) == (ours is not None)
    assert ours is None or f"; {sent} is near {ours}; " in message


def test_a_thousand_unknown_names_are_counted_and_only_some_are_listed_and_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []

    def counted(name: str, *of: Any) -> list[str]:
        compared.append(name)
        return get_close_matches(name, *of)

    monkeypatch.setattr("gnomon.reference.body.reading.get_close_matches", counted)
    message = refused(**{f"k{i}": "1" for i in range(1000)}).message
    assert message.count("k") > 30
    assert " and 968 more; " in message
    assert len(message) < 1000
    assert len(compared) == 32, "8 MiB of names would take minutes"


def test_a_field_given_twice_is_refused_even_with_equal_values() -> None:
    for name in ("model", "seed", "temperature", "unknown"):
        body = body_of()[:-1] + f', "{name}": 1, "{name}": 1}}'.encode()
        error = refused_body(body)
        assert error.param == name
        assert "twice" in error.message


def test_a_key_given_twice_inside_a_field_is_refused() -> None:
    assert refused(logit_bias='{"1": 1, "1": 1}').param == "logit_bias.1"
    error = refused(stream="true", stream_options='{"include_usage": true, "include_usage": true}')
    assert error.param == "stream_options.include_usage"


def test_keys_are_compared_after_their_escapes() -> None:
    assert refused_body(body_of(seed="1")[:-1] + b', "\\u0073eed": 1}').param == "seed"


@pytest.mark.parametrize("name", ["model", "prompt", "suffix", "stop", "user"])
def test_lone_surrogates_are_refused_by_name_and_pairs_are_not(name: str) -> None:
    for half in ("\\ud800", "\\udfff", "a\\ud83d", "\\ude00\\ud83d"):
        assert refused(**{name: f'"{half}"'}).param == name
    read(**{name: '"\\ud83d\\ude00"'})


def test_a_lone_surrogate_in_a_key_is_refused_and_can_be_answered() -> None:
    for error in (refused_body(b'{"\\ud800": 1}'), refused(logit_bias='{"\\ud800": 1}')):
        body = json.loads(json.dumps(error.to_json()))
        assert body["error"]["param"].endswith("\\ud800")  # spelled out: half of a pair is no JSON for many parsers


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 1000, "-" + "9" * 4400])
@pytest.mark.parametrize("name", sorted(LAW_FIELDS))
def test_a_number_that_is_none_is_refused_by_every_field(name: str, text: str) -> None:
    error = refused(**{name: text})
    assert error.param == name
    assert text[:40] in error.message


@pytest.mark.parametrize("text", ["0." + "1" * 1000, "1." + "0" * 1000, "1" * 1000 + ".5", "1e-" + "0" * 1000 + "1"])
@pytest.mark.parametrize("name", ["temperature", "n", "user"])
def test_a_number_of_a_thousand_digits_is_refused_whatever_its_value(name: str, text: str) -> None:
    assert refused(**{name: text}).param == name


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"[", b"nul", b"{'model': 1}", b'{"model": "m",}', b'{"model": "m"} x', b'{"a": "\n"}', b"01",
     b'{"a": .5}', b'{"a": +1}', b'{"a": "\\x"}', "\ufeff{}".encode(), "{}".encode("utf-16"), b"// c\n{}"],
)  # fmt: skip
def test_what_is_not_json_is_a_400_without_a_field(body: bytes) -> None:
    error = refused_body(body)
    assert error.param is None
    assert error.message


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', b"true", b"NaN", b"1e400", b"[{}]", b"9" * 5000])
def test_a_body_that_is_no_object_is_a_400(body: bytes) -> None:
    error = refused_body(body)
    assert error.param is None
    assert "object" in error.message


@pytest.mark.parametrize("wrong", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_invalid_utf8_is_a_400(wrong: bytes) -> None:
    error = refused_body(b'{"model": "m", "prompt": "' + wrong + b'"}')
    assert error.param is None
    assert "UTF-8" in error.message


@pytest.mark.parametrize("depth", [500, 5_000, 200_000])
@pytest.mark.parametrize("name", ["prompt", "stop", "logit_bias", "user", "unknown"])
def test_absurd_nesting_is_a_400(name: str, depth: int) -> None:
    for left, right in (("[", "]"), ('{"1":', "}")):
        error = refused(**{name: left * depth + "1" + right * depth})
        assert (error.param or name).startswith(name)
    refused_body(b"[" * depth)
    refused_body(b'{"a":' * depth)


def test_parse_json_keeps_numbers_as_they_are() -> None:
    value = parse_json(b'{"a": 9007199254740993, "b": 1.0, "c": [true, null]}')
    assert value == {"a": 9007199254740993, "b": 1.0, "c": [True, None]}
    assert isinstance(value["b"], float)


def test_from_fields_reads_python_values_as_strictly() -> None:
    request = CompletionRequest.from_fields({"model": "m", "prompt": [1, 2], "logit_bias": {"3": 1}})
    assert request.prompts == ((1, 2),)
    assert request.logit_bias == {3: 1.0}
    for bad in (float("nan"), float("inf"), -float("inf"), "1", True, object()):
        with pytest.raises(InvalidRequest) as caught:
            CompletionRequest.from_fields({"model": "m", "prompt": "p", "temperature": bad})
        assert caught.value.param == "temperature"


def test_a_field_is_read_before_fields_are_compared() -> None:
    assert refused(n="200", best_of="2").param == "n"
    assert refused(stream="1", stream_options='{"include_usage": true}').param == "stream"


# ---- the schemas beside the parser


def conforms(value: Any, schema: Mapping[str, Any]) -> bool:
    """JSON Schema, as much of it as the table uses. An unknown keyword is a mistake of this test."""
    known = {"type", "minimum", "maximum", "anyOf", "items", "minItems", "maxItems", "minLength", "properties",
             "patternProperties", "additionalProperties", "maxLength"}  # fmt: skip
    assert schema.keys() <= known, schema
    if "anyOf" in schema:
        return any(conforms(value, option) for option in schema["anyOf"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    is_type = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and float(value).is_integer(),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
        "null": value is None,
    }
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(is_type[kind] for kind in types):
        return False
    if number:
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, str):
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
    if isinstance(value, list):
        items = schema.get("items")
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return fits and (items is None or all(conforms(item, items) for item in value))
    if isinstance(value, dict):
        named, like = schema.get("properties", {}), schema.get("patternProperties", {})
        rest = schema["additionalProperties"]
        return all(
            conforms(item, named.get(key) or next((of for name, of in like.items() if re.search(name, key)), rest))
            for key, item in value.items()
        )
    return True


SCHEMA_VALUES: tuple[Any, ...] = (
    True, False, 0, 1, -1, 2, 3, -2, -3, 20, 21, 128, 129, 0.5, 1.0, -0.5, 2.5, 2**63 - 1, 2**63, -(2**63),
    -(2**63) - 1, "", "a", [], [1], [0], [-1], [1, 2], [[1], [2]], [[]], [["a"]], ["a"], ["a", "b"], [""], ["a", 1],
    [True], [None], ["s"] * 64, ["s"] * 65, {}, {"1": 1}, {"01": 1}, {"1": 101}, {"1": -100}, {"1": None}, {"a": 1},
    {"a": None}, {"include_usage": True}, {"include_usage": None}, {"include_usage": 1}, {"other": []},
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(LAW_FIELDS))
def test_schema_and_parser_agree(name: str) -> None:
    for value in SCHEMA_VALUES:
        fields = {"model": "m", "prompt": "p", **({"stream": True} if name == "stream_options" else {}), name: value}
        try:
            CompletionRequest.from_fields(fields)
            accepted, blamed = True, name
        except InvalidRequest as error:
            accepted, blamed = False, (error.param or "").split(".")[0]
        assert blamed == name
        assert accepted == conforms(value, BY_NAME[name].schema), (name, value)


# ---- 12: errors


def test_an_error_has_all_four_keys_and_nothing_else() -> None:
    answer = refused(temperature="3").to_json()
    assert answer.keys() == {"error"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == "temperature"
    assert answer["error"]["code"] is None


def test_an_error_without_a_field_has_a_null_param() -> None:
    assert refused_body(b"[").to_json()["error"]["param"] is None


def test_an_unknown_model_is_a_404_with_its_code() -> None:
    error = ModelNotFound("other", "gnomon")
    assert error.status == 404
    assert error.to_json()["error"]["code"] == "model_not_found"
    assert error.to_json()["error"]["param"] == "model"
    assert error.to_json()["error"]["type"] == "invalid_request_error"
    assert "other" in error.message
    assert "gnomon" in error.message


def test_an_error_that_is_nobodys_fault_is_a_500_server_error() -> None:
    error = RequestError("broken")
    assert error.status == 500
    assert error.to_json() == {"error": {"message": "broken", "type": "server_error", "param": None, "code": None}}


def test_no_refusal_is_a_422() -> None:
    assert {RequestError.status, InvalidRequest.status, ModelNotFound.status} == {400, 404, 500}


def test_messages_stay_short_however_much_was_sent() -> None:
    for name in LAW_FIELDS - {"model", "prompt", "suffix", "user", "stop"}:
        assert len(refused(**{name: json.dumps("x" * 100_000)}).message) < 1000, name


def test_a_long_unknown_name_is_shown_short_and_unharmed() -> None:
    message = refused(**{"x" * 100_000: "1"}).message
    assert message.startswith("x" * 50)
    assert message.count("(") == message.count(")")
    assert len(message) < 1000


# ---- too many prompts


@pytest.mark.parametrize("wrong", ['""', "[1.5]", "[-1]", "{}"])
def test_too_many_prompts_are_refused_before_the_first_is_read(wrong: str) -> None:
    limits = Limits(prompts=3)
    with pytest.raises(InvalidRequest) as raised:
        read(limits, prompt=f"[{wrong}, {wrong}, {wrong}, {wrong}]")
    assert (raised.value.param, raised.value.message) == ("prompt", "prompt: 4 prompts; at most 3 on this server")
    assert read(limits, prompt="[1, 2, 3, 4]").prompts == ((1, 2, 3, 4),)
