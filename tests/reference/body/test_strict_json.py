"""The reader of bodies: the values and the errors of `json.loads`, and an end to how many there may be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnomon.reference.body import strict_json
from gnomon.reference.body.reading import parse_json
from gnomon.reference.body.shown import shown
from gnomon.reference.body.strict_json import MOST_DEPTH, MOST_VALUES, SLICE, JsonReader, TooManyValues
from gnomon.reference.errors import InvalidRequest

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(st.integers())
)


def read(text: str) -> Any:
    return JsonReader(text, int, float, float).document()


def fate(reader: Any, text: str) -> Any:
    try:
        return reader(text)
    except json.JSONDecodeError as error:
        return error.msg, error.pos


@given(VALUES, st.sampled_from([None, 1, "\t \r\n"]))
def test_what_it_reads_is_what_json_loads_reads(value: Any, indent: Any) -> None:
    text = json.dumps(value, indent=indent)
    assert read(f" {text}\n") == value
    assert repr(read(text)) == repr(json.loads(text))


@pytest.mark.slow
@given(VALUES, st.data())
def test_what_is_no_json_is_refused_as_json_loads_refuses_it(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text)))
    broken = text[:at] + data.draw(st.sampled_from([*'{}[],:"\\-.e01\x00 x', "", ",,", "01", "-Infinity"]))
    broken += text[at + data.draw(st.integers(0, 2)) :]
    assert repr(fate(read, broken)) == repr(fate(json.loads, broken))


@pytest.mark.parametrize(
    "text",
    ["", " ", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1,,2]", "[01,2]", "[-]", "[1.]", "[1,2.5,3]", "[1e5,2]",
     "{", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{1:2}", '{"a" 1}', "[1}", '{"a":1]', "1 1", "nul", "tru",
     '"a', '"\\x"', '"\n"', "[\u0661,2]", "\ufeff1", "[1,\u00a02]", "NaN", "[-Infinity,Infinity]", "-Infinit"],
)  # fmt: skip
def test_texts_that_are_nearly_json(text: str) -> None:
    assert repr(fate(read, text)) == repr(fate(json.loads, text))


def test_lists_of_integers_are_read_across_slices_and_have_no_end() -> None:
    for unit in ("7,", "123456, ", "-5 ,\n"):
        count = 5 * SLICE // len(unit) + 3
        text = "[" + unit * count + "1]"
        assert read(text) == json.loads(text)
    assert len(read("[" + "1," * (2 * MOST_VALUES) + "1]")) == 2 * MOST_VALUES + 1


@pytest.mark.parametrize(
    ("unit", "cost"), {'""': 1, "null": 1, "1.5": 1, "12345678901234567890": 1, "[]": 8, "{}": 8, "[1]": 9}.items()
)
def test_values_have_an_end_that_names_the_member_they_are_in(
    unit: str, cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 16 values are the object and the list that they are in; `"a"` is one more."""
    monkeypatch.setattr(strict_json, "MOST_VALUES", 10_000)
    count = (10_000 - 16) // cost
    assert len(read('{"stop":[' + ",".join([unit] * count) + "]}")["stop"]) == count
    with pytest.raises(TooManyValues):
        read('{"stop":[' + ",".join([unit] * (count + 1)) + "]}")
    with pytest.raises(InvalidRequest) as refused:
        parse_json(('{"user":"a","stop":[' + ",".join([unit] * (count + 1)) + "]}").encode())
    assert refused.value.param == "stop"
    assert "more than 10000 values" in refused.value.message


@pytest.mark.slow
def test_members_have_the_same_end() -> None:
    inner = ",".join(f'"{i}":1' for i in range(MOST_VALUES))
    for text, param in ((f'{{"logit_bias":{{{inner}}}}}', "logit_bias"), (f"{{{inner}}}", str(MOST_VALUES - 8))):
        with pytest.raises(InvalidRequest) as refused:
            parse_json(text.encode())
        assert refused.value.param == param


def test_depth_has_an_end() -> None:
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert read(deep) == json.loads(deep)
    with pytest.raises(RecursionError):
        read(f"[{deep}]")
    with pytest.raises(RecursionError):
        read("[" * 10**6)


def test_the_first_key_that_occurs_twice_is_remembered_and_the_last_value_holds() -> None:
    value = read('{"a":1,"b":2,"b":3,"a":4,"c":{"d":1,"d":2}}')
    assert value == {"a": 4, "b": 3, "c": {"d": 2}}
    assert (value.repeated, value["c"].repeated) == ("b", "d")


def test_a_list_of_millions_is_shown_without_being_written() -> None:
    assert shown(list(range(10, 16))) == "[10, 11, 12, 13, 14, 15]"
    assert shown([1] * 10**6) == "[" + "1, " * 19 + "1,… (1000000 elements)"
    assert shown({str(i): "x" for i in range(5000)}).endswith("… (5000 members)")
