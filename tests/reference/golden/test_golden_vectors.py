"""The golden vectors: that they are what the reference says, that others can use them, that both engines live up to
them, and that the judge notices what is wrong and excuses what is not."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference import FIELDS, Tokenizer, default_model_path, load_checkpoint, load_tokenizer
from gnomon.reference.golden import (
    FLOAT32_TOLERANCE,
    MODEL,
    REACH,
    AnswerCheck,
    GoldenCase,
    Tolerance,
    golden_path,
    judge_answer,
    load_cases,
)
from gnomon.reference.golden import __main__ as command
from gnomon.reference.golden.vectors import documents, to_text
from helpers.golden import Foresight, right_answer
from helpers.golden_changes import changes, knowing_tests, report
from helpers.live import call, events

FILES = ("requests.json", "sampler.json", "threefry.json", "tokens.json")
WORD = 2**32


@cache
def document(name: str) -> Any:
    return json.loads((golden_path() / name).read_text(encoding="ascii"))


@cache
def cases() -> tuple[GoldenCase, ...]:
    return load_cases()


def case(name: str) -> GoldenCase:
    return next(case for case in cases() if case.name == name)


@cache
def foresight() -> Foresight:
    return Foresight(load_checkpoint(default_model_path()), cases())


@cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(default_model_path(), foresight().vocab_size)


# ---- the files


def test_the_checked_in_files_are_what_the_reference_says_now() -> None:
    """On another machine sums are rounded otherwise: 1e-14 of a logit, which may turn its last digit in float32."""
    made = dict(documents(foresight(), tokenizer()))
    assert tuple(made) == FILES
    for name, digits in zip(FILES, (1e-7, 1e-6, 1e-12, 0.0), strict=True):
        found = list(changes(document(name), json.loads(to_text(made[name])), digits))
        assert not found, report(name, found)


@pytest.mark.weekly
def test_the_command_makes_the_checked_in_files(tmp_path: Path) -> None:
    assert command.main([str(tmp_path / "new")]) == 0
    for name, digits in zip(FILES, (1e-7, 1e-6, 1e-12, 0.0), strict=True):
        made = json.loads((tmp_path / "new" / name).read_text(encoding="ascii"))
        found = list(changes(document(name), made, digits))
        assert not found, report(name, found)


def test_a_red_vector_says_what_changed_and_which_unit_tests_know_why() -> None:
    stored = document("sampler.json")
    made = copy.deepcopy(stored)
    made["small"][0]["noise"][2] += 1e-3
    made["small"][0]["token"] = 2
    made["large"][0]["draws"][1]["kept"][4] = False
    found = list(changes(stored, made, 1e-6))
    assert [(change.vector, change.field) for change in found] == [
        ("every stage", "small[0].noise[2]"), ("every stage", "small[0].token"),
        ("every stage", "large[0].draws[1].kept[4]"),
    ]  # fmt: skip
    said = report("sampler.json", found)
    assert "small[0].noise[2] of “every stage”: stored 2.88194818365" in said
    assert "now 2.88294818365" in said
    assert (
        "python -m pytest tests/reference/test_prng.py tests/reference/test_sampler.py tests/reference/test_goldens.py"
        in said
    )
    assert "gnomon.reference.golden" not in said


def test_every_field_of_the_vectors_has_unit_tests_that_exist() -> None:
    tests = Path(__file__).parents[2]
    for file in FILES:
        for change in changes(document(file), _moved(document(file)), 1e-12):
            for test in knowing_tests(file, change.field):
                assert (tests / test).is_file(), test


def _moved(value: Any) -> Any:
    """The document with another value in the place of each."""
    if isinstance(value, dict):
        return {name: inner if name == "name" else _moved(inner) for name, inner in value.items()}
    return [_moved(inner) for inner in value] if isinstance(value, list) else ["another"]


def test_the_command_wants_one_directory_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["a", "b"]) == command.main(["--help"]) == 2
    (tmp_path / "file").write_text("")
    assert command.main([str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_ascii_with_a_line_a_value_and_no_line_is_endless(name: str) -> None:
    text = (golden_path() / name).read_text(encoding="ascii")
    assert to_text(json.loads(text)) == text
    assert max(map(len, text.splitlines())) < 400


def test_the_files_are_small() -> None:
    assert sum((golden_path() / name).stat().st_size for name in FILES) < 1_500_000


# ---- the cases


def test_every_field_is_honoured_with_a_value_of_its_own_and_refused_by_name() -> None:
    for field in FIELDS:
        sent = [(case, case.fields[field.name]) for case in cases() if field.name in case.fields]
        honoured = [value for case, value in sent if case.status == 200]
        assert any(value is not None and value != field.default for value in honoured), field.name
        refused = [case.error["param"] for case, _ in sent if case.error is not None]
        assert field.name in [param.split(".")[0] for param in refused if param is not None], field.name


def test_every_name_is_its_own_and_every_case_says_what_it_shows() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) > 200
    assert all(case.shows for case in cases())


def test_no_case_depends_on_chance() -> None:
    for case in cases():
        if any(candidate.ids for candidate in case.candidates):
            assert case.fields.get("seed") is not None or case.fields.get("temperature") == 0, case.name


def test_all_decisions_are_clear_but_those_of_the_cases_about_ties() -> None:
    """Clear: no other token could come even with twice the error of float32, no ranking turn with twice its own."""
    for case in cases():
        errors = [error for candidate in case.candidates for *_, error in candidate.rivals]
        if case.name.startswith("close: "):
            assert min(errors) < FLOAT32_TOLERANCE.logit_error, case.name
            continue
        assert min(errors, default=1.0) > 2 * FLOAT32_TOLERANCE.logit_error, case.name
        if case.is_ranked:
            for j in range(len(case.prompt_ids)):
                means = sorted({c.mean_logprob for c in case.candidates if c.prompt == j})
                gaps = [b - a for a, b in pairwise(means)]
                assert min(gaps) > 4 * FLOAT32_TOLERANCE.logprob, case.name


def test_rivals_and_margins_tell_the_same() -> None:
    """Where a draw is no matter of the nucleus, the least error is half the lead, times the temperature."""
    told = 0
    for case in cases():
        temperature = case.fields.get("temperature", 1)
        if case.fields.get("top_p", 1) != 1:
            continue
        for candidate in case.candidates:
            first = {step: error for step, _, _, error in reversed(candidate.rivals)}
            for step, error in first.items():
                margin = candidate.margins[step]
                assert margin is not None
                assert error / 1.3 < margin * (temperature or 1) / 2 + 1e-5
                assert error * 1.3 > margin * (temperature or 1) / 2 - 1e-4
                told += 1
    assert told > 10


# ---- single draws, worked out in the words of the README with nothing but the standard library


def threefry(key: list[int], counter: list[int]) -> list[int]:
    k = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x0, x1 = (counter[0] + k[0]) % WORD, (counter[1] + k[1]) % WORD
    for block in range(5):
        for r in (17, 29, 16, 24) if block % 2 else (13, 15, 26, 6):
            x0 = (x0 + x1) % WORD
            x1 = ((x1 << r | x1 >> (32 - r)) % WORD) ^ x0
        x0, x1 = (x0 + k[(block + 1) % 3]) % WORD, (x1 + k[(block + 2) % 3] + block + 1) % WORD
    return [x0, x1]


def noise(x0: int, x1: int) -> float:
    high = x0 >= 2**31
    if high:
        x0, x1 = WORD - 1 - x0, WORD - 1 - x1
    w = x0 * 2.0**-32 + (x1 + 0.5) * 2.0**-64
    return -math.log(-math.log(w) if high else -math.log1p(-w))


def hexadecimal(words: list[str]) -> list[int]:
    return [int(word, 16) for word in words]


def test_threefry_is_what_plain_integers_give() -> None:
    answers = document("threefry.json")
    known = answers["threefry2x32"]
    assert [entry["words"] for entry in known[:3]] == [
        ["6b200159", "99ba4efe"], ["1cb996fc", "bb002be7"], ["c4923a9c", "483df7a0"],
    ]  # fmt: skip
    for entry in known:
        assert threefry(hexadecimal(entry["key"]), hexadecimal(entry["counter"])) == hexadecimal(entry["words"])
    for drawn in answers["draws"]:
        s = int(drawn["seed"]) % 2**64
        assert hexadecimal(drawn["key0"]) == [s >> 32, s % WORD]
        assert hexadecimal(drawn["key1"]) == threefry([s >> 32, s % WORD], [drawn["candidate"], drawn["step"]])
        for token in drawn["tokens"]:
            assert hexadecimal(token["words"]) == threefry(hexadecimal(drawn["key1"]), [token["id"], 0])
    pairs = [*answers["gumbel"], *(token for drawn in answers["draws"] for token in drawn["tokens"])]
    for pair in pairs:
        assert pair["gumbel"] == pytest.approx(noise(*hexadecimal(pair["words"])), rel=1e-12)


def close(got: list[float], told: list[float | None]) -> bool:
    """null is −∞."""
    return all(
        a == -math.inf if b is None else math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
        for a, b in zip(got, told, strict=True)
    )


def check_draw(drawn: Any, logits: list[float], counts: list[int], ids: list[int]) -> None:
    """The law's section 4, id by id; compared at `ids`."""
    every, T, top_p = range(len(logits)), drawn["temperature"], drawn["top_p"]
    largest = max(logits)
    lse = largest + math.log(sum(math.exp(l - largest) for l in logits))
    assert close([logits[v] - lse for v in ids], drawn["logprobs"])
    z = [logits[v] + drawn["logit_bias"].get(str(v), 0.0) for v in every]
    assert close([z[v] for v in ids], drawn["biased"])
    z = [z[v] - drawn["frequency_penalty"] * counts[v] - drawn["presence_penalty"] * (counts[v] > 0) for v in every]
    assert close([z[v] for v in ids], drawn["penalized"])
    if T == 0:
        assert drawn["token"] == max(every, key=lambda v: (z[v], -v))
        assert drawn["scaled"] is drawn["kept"] is drawn["noise"] is drawn["score"] is None
        return
    s = [0.0 if z[v] == max(z) else (z[v] - max(z)) / T for v in every]
    assert close([s[v] for v in ids], drawn["scaled"])
    total, before, kept = sum(map(math.exp, s)), 0.0, set()
    for rank, v in enumerate(sorted(every, key=lambda v: (-z[v], v))):
        if top_p == 1 or rank == 0 or before < top_p:
            kept.add(v)
        before += math.exp(s[v]) / total
    assert [v in kept for v in ids] == drawn["kept"]
    assert drawn.get("kept_ids", len(kept)) == len(kept)
    S = int(drawn["seed"]) % 2**64
    key = threefry([S >> 32, S % WORD], [drawn["candidate"], drawn["step"]])
    g = [noise(*threefry(key, [v, 0])) for v in every]
    assert close([g[v] for v in ids], drawn["noise"])
    score = [s[v] + g[v] if v in kept else -math.inf for v in every]
    assert close([score[v] for v in ids], drawn["score"])
    first, *others = sorted(every, key=lambda v: (-score[v], v))
    assert drawn["token"] == first
    margin = score[first] - score[others[0]] if others else math.inf
    assert math.isinf(margin) if drawn["margin"] is None else margin == pytest.approx(drawn["margin"], rel=1e-9)


@pytest.mark.parametrize("drawn", document("sampler.json")["small"], ids=lambda drawn: drawn["name"])
def test_a_small_draw_is_what_the_law_says_id_by_id(drawn: Any) -> None:
    check_draw(drawn, drawn["logits"], drawn["counts"], list(range(len(drawn["logits"]))))


def test_large_draws_are_what_the_law_says_id_by_id() -> None:
    for shared in document("sampler.json")["large"]:
        for drawn in shared["draws"]:
            counts = [drawn["counts"].get(str(v), 0) for v in range(len(shared["logits"]))]
            check_draw(drawn, shared["logits"], counts, drawn["ids"])


def test_the_draws_are_worth_their_place() -> None:
    """A nucleus that keeps some and drops some, a tie, infinite distances, a count, a bias, every kind of seed."""
    small = document("sampler.json")["small"]
    large = [drawn for shared in document("sampler.json")["large"] for drawn in shared["draws"]]
    assert any(drawn["kept"] and 1 < sum(drawn["kept"]) < len(drawn["kept"]) for drawn in small)
    assert any(1 < drawn["kept_ids"] < 100 for drawn in large)
    assert any(drawn["scaled"] and None in drawn["scaled"] for drawn in small)
    assert any(drawn["margin"] == 0 for drawn in small)
    reached, passed = (next(d for d in small if d["name"].startswith(f"top_p {how}")) for how in ("reached", "passed"))
    assert (sum(reached["kept"]), sum(passed["kept"])) == (2, 3)


# ---- tokens


def test_tokens_tell_bytes_texts_and_labels() -> None:
    told = document("tokens.json")
    assert len(set(told["labels"])) == len(told["labels"]) == told["vocabulary"] == 2048
    spelt = {v: bytes.fromhex(data) for v, data in told["bytes"].items()}
    for v, data in spelt.items():
        label = told["labels"][int(v)]
        shown = "".join(f"\\x{byte:02x}" for byte in data)
        assert label in (data.decode(errors="replace"), f"bytes:{shown}", told["special"].get(v))
    for entry in told["texts"]:
        assert [told["labels"][v] for v in entry["ids"]] == entry["labels"]
        assert entry["starts"] == sorted(entry["starts"])
        assert len(entry["starts"]) == len(entry["ids"])
        assert entry["starts"][-1] < len(entry["text"])
    for entry in told["decoding"]:
        whole = b"".join(map(bytes.fromhex, entry["bytes"]))
        assert entry["text"] == whole.decode(errors="replace") == "".join(entry["shown"]) + entry["flush"]
        assert entry["starts"] == [len("".join(entry["shown"][:i])) for i in range(len(entry["bytes"]))]


# ---- the README


WORDING = (
    ("the result is", "result ="), ("⊕", "^"), ("1bd11bda", "0x1bd11bda"), ("mod", "%"),
    (" if block is even, else", " if block % 2 == 0 else"), ("(x1 ⋘ r)", "(x1 << r | x1 >> 32 - r)"),
    ("x0 ≥ 80000000", "bool((x0 >= 0x80000000)[0])"), (" · ", " * "), ("½", "0.5"), ("2⁻³²", "2.0**-32"),
    ("if h: complement every bit of x0 and of x1", "if h: x0, x1 = ~x0, ~x1"), ("2⁻⁶⁴", "2.0**-64"),
    ("−ln w if h, else −log1p(−w)", "-log(w) if h else -log1p(-w)"), ("−ln E", "-log(E)"),
)  # fmt: skip


def executed(after: str, **names: Any) -> dict[str, Any]:
    """What the names of the README's block after these words come to, its notation put into Python's."""
    text = (golden_path() / "README.md").read_text(encoding="utf-8").split(after)[1]
    lines = [line[4:].split("        ")[0] if "  in float64" in line or "  log1p(x)" in line else line[4:]
             for line in text.split("\n\n")[1].splitlines()]  # fmt: skip
    code = "\n".join(lines)
    for written, python in WORDING:
        code = code.replace(written, python)
    exec(code, names)
    return names


def test_the_readme_defines_the_random_function_that_the_vectors_hold() -> None:
    def words(pair: list[str]) -> list[Any]:
        return [np.array([int(word, 16)], np.uint32) for word in pair]

    known = document("threefry.json")
    for entry in known["threefry2x32"]:
        (k0, k1), (c0, c1) = words(entry["key"]), words(entry["counter"])
        found = executed("and gives a pair:", k0=k0, k1=k1, c0=c0, c1=c1)["result"]
        assert [f"{int(word[0]):08x}" for word in found] == entry["words"]
    for entry in known["gumbel"]:
        x0, x1 = words(entry["words"])
        g = executed("noise so:", x0=x0, x1=x1, log=np.log, log1p=np.log1p)["g"]
        assert float(g[0]) == pytest.approx(entry["gumbel"], rel=1e-12)


def test_the_worked_example_has_the_numbers_of_the_file() -> None:
    text = (golden_path() / "README.md").read_text(encoding="utf-8").replace("−", "-")
    drawn = next(drawn for drawn in document("sampler.json")["small"] if drawn["name"] == "every stage")
    table = {
        cells[1].strip(" `"): cells[2:7] for cells in (row.split("|") for row in text.splitlines()) if len(cells) > 3
    }
    for stage in ("logits", "counts", "logprobs", "biased", "penalized", "scaled", "noise", "score"):
        cells = [None if cell.strip() == "-∞" else float(cell) for cell in table[stage]]
        assert cells == pytest.approx(drawn[stage], abs=6e-7), stage
    assert [cell.strip() == "yes" for cell in table["kept"]] == drawn["kept"]
    assert f"token {drawn['token']}, ahead by {drawn['margin']:.6f}" in text
    for words in ("cb8fd75e e9e0ff79", "aa1352c4 85f04501"):
        assert words in text


def test_the_readme_names_every_member_of_a_case_and_every_file() -> None:
    text = (golden_path() / "README.md").read_text(encoding="utf-8")
    members = {name for entry in document("requests.json")["cases"] for name in entry}
    members |= {name for case in document("requests.json")["cases"] for c in case.get("candidates", ()) for name in c}
    for name in (*members, *FILES):
        assert re.search(rf"`[^`]*\b{re.escape(name)}\b[^`]*`", text), name
    assert f"{FLOAT32_TOLERANCE.logit_error:g}" in text or "2e-4" in text


# ---- both engines, over the wire


@pytest.fixture(scope="module", params=["reference", pytest.param("jax", marks=pytest.mark.slow)])
def app(request: pytest.FixtureRequest, native_cache: Path) -> Iterator[Starlette]:
    if request.param == "reference":
        yield create_app(foresight(), tokenizer(), Settings())
        return
    engine = JaxEngine(load_checkpoint(default_model_path()), EngineSettings(slots=8, compilation_cache=native_cache))
    yield create_app(engine, tokenizer(), Settings())
    engine.stop()


def replay(app: Starlette, case: GoldenCase) -> AnswerCheck:
    headers = {"content-type": "application/json"}
    response = call(app, "POST", "/v1/completions", content=case.payload(), headers=headers)
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    return judge_answer(case, response.status_code, events(response.content) if is_stream else response.json())


def test_an_engine_gives_every_golden_answer(app: Starlette, record_property: Callable[[str, object], None]) -> None:
    verdicts = {case.name: replay(app, case) for case in cases()}
    assert {name: list(map(str, v.differences)) for name, v in verdicts.items() if not v.passed} == {}
    assert sum(v.tokens for v in verdicts.values()) > 900
    assert sum(v.logprobs for v in verdicts.values()) > 1200
    assert all(name.startswith("close: ") for name, v in verdicts.items() if v.excused)
    worst = max(v.worst_logprob for v in verdicts.values())
    record_property("worst_logprob", worst)
    print(f"worst log-probability: {worst:.1e}; excused: {sum(v.excused for v in verdicts.values())}")


def test_another_name_of_the_model_is_asked_for_and_expected() -> None:
    other = create_app(foresight(), tokenizer(), Settings(served_model_name="stories"))
    for name in ("prompt: a string", "max_tokens: 3.0", "refused: another model"):
        sent = case(name)
        headers = {"content-type": "application/json"}
        response = call(other, "POST", "/v1/completions", content=sent.payload("stories"), headers=headers)
        assert judge_answer(sent, response.status_code, response.json(), model="stories").passed


# ---- the judge


def paths(verdict: AnswerCheck) -> list[str]:
    return [difference.path for difference in verdict.differences]


def test_the_right_answers_pass() -> None:
    for case in cases():
        verdict = judge_answer(case, case.status, right_answer(case))
        assert paths(verdict) == [], case.name
        assert (verdict.excused, verdict.worst_logprob) == (0, 0.0)


def put(value: Any, *place: str | int) -> Callable[[Any], None]:
    """A change of one place of an answer."""

    def change(answer: Any) -> None:
        for key in place[:-1]:
            answer = answer[key]
        answer[place[-1]] = value(answer[place[-1]]) if callable(value) else value

    return change


def drop(*place: str | int) -> Callable[[Any], None]:
    def change(answer: Any) -> None:
        for key in place[:-1]:
            answer = answer[key]
        del answer[place[-1]]

    return change


def shift(by: float, i: int) -> Callable[[Any], None]:
    """Both numbers of one token."""

    def change(answer: Any) -> None:
        arrays = answer["choices"][0]["logprobs"]
        arrays["token_logprobs"][i] += by
        arrays["top_logprobs"][i][arrays["tokens"][i]] += by

    return change


L = ("choices", 0, "logprobs")
PLAIN, ECHO, MANY = "prompt: a string", "echo: logprobs 2, max_tokens 3", "n: 4"
RANKED, STREAM, REFUSED = "best_of: 4 of which 2", "stream: include_usage", "refused: n 0"
WRONG: tuple[tuple[str, str, Callable[[Any], None], str], ...] = (
    ("a log-probability is shifted", PLAIN, shift(1e-3, 2), "choices[0].logprobs.token_logprobs[2]"),
    ("the prompt's are shifted", ECHO, shift(-1e-3, 1), "choices[0].logprobs.token_logprobs[1]"),
    ("one is NaN", PLAIN, shift(math.nan, 2), "choices[0].logprobs.token_logprobs[2]"),
    ("one is beyond floats", PLAIN, put(10**400, *L, "token_logprobs", 1), "choices[0].logprobs.token_logprobs[1]"),
    ("one is a text", PLAIN, put("-0.4", *L, "token_logprobs", 1), "choices[0].logprobs.token_logprobs[1]"),
    ("the two are not one number", PLAIN, put(lambda lp: lp + 1e-12, *L, "token_logprobs", 1),
     'choices[0].logprobs.top_logprobs[1][" there"]'),
    ("the first of an echo is a number", ECHO, put(-1.0, *L, "token_logprobs", 0),
     "choices[0].logprobs.token_logprobs[0]"),
    ("an offset is wrong", PLAIN, put(lambda start: start + 1, *L, "text_offset", 3),
     "choices[0].logprobs.text_offset[3]"),
    ("offsets count from the completion", PLAIN, put(lambda all: [start - 16 for start in all], *L, "text_offset"),
     "choices[0].logprobs.text_offset[0]"),
    ("another token with a large margin", PLAIN, put(" boy", *L, "tokens", 5), "choices[0].logprobs.tokens[5]"),
    ("another token in the prompt", ECHO, put(" dog", *L, "tokens", 1), "choices[0].logprobs.tokens[1]"),
    ("a label of another kind", PLAIN, put("Ġthere", *L, "tokens", 1), "choices[0].logprobs.tokens[1]"),
    ("a ranking lacks one", ECHO, lambda answer: answer["choices"][0]["logprobs"]["top_logprobs"][1].popitem(),
     "choices[0].logprobs.top_logprobs[1]"),
    ("a ranking has another", PLAIN, put(-7.5, *L, "top_logprobs", 1, " cat"),
     'choices[0].logprobs.top_logprobs[1][" cat"]'),
    ("a ranking is left out", PLAIN, put(None, *L, "top_logprobs", 1), "choices[0].logprobs.top_logprobs[1]"),
    ("an array is shorter", PLAIN, drop(*L, "text_offset", -1), "choices[0].logprobs.text_offset"),
    ("an array is left out", PLAIN, drop(*L, "top_logprobs"), "choices[0].logprobs.top_logprobs"),
    ("no logprobs", PLAIN, put(None, *L), "choices[0].logprobs"),
    ("logprobs that were not asked for", "max_tokens: left out", put({}, *L), "choices[0].logprobs"),
    ("the text is stripped", "echo: false", put(str.strip, "choices", 0, "text"), "choices[0].text"),
    ("the text lacks a character", "max_tokens: left out", put(lambda text: text[:-1], "choices", 0, "text"),
     "choices[0].text"),
    ("the reason is another", PLAIN, put("stop", "choices", 0, "finish_reason"), "choices[0].finish_reason"),
    ("no reason", PLAIN, drop("choices", 0, "finish_reason"), "choices[0].finish_reason"),
    ("an index is true", "n: 2", put(True, "choices", 1, "index"), "choices[1].index"),
    ("a choice is missing", MANY, drop("choices", 3), "choices"),
    ("two choices change places", MANY, put(lambda all: [all[1], all[0], *all[2:]], "choices"), "choices[0].index"),
    ("returned ones only are counted", RANKED, put({"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16},
     "usage"), "usage.completion_tokens"),
    ("the prompt is counted twice", "n: 2", put({"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20},
     "usage"), "usage.prompt_tokens"),
    ("a sum is none", PLAIN, put(5, "usage", "total_tokens"), "usage.total_tokens"),
    ("no usage", PLAIN, drop("usage"), "usage"),
    ("the model is another", PLAIN, put("m", "model"), "model"),
    ("it is a chat", PLAIN, put("chat.completion", "object"), "object"),
    ("an unranked choice is returned", RANKED, put(lambda all: [all[1] | {"index": 0}, all[0] | {"index": 1}],
     "choices"), "choices[0].logprobs.tokens[1]"),
    ("a chunk has no usage", STREAM, drop(0, "usage"), "chunks[0].usage"),
    ("the last chunk has none", STREAM, put(None, -1, "usage"), "usage"),
    ("the last chunk has a choice", STREAM, put([{}], -1, "choices"), "chunks[2].choices"),
    ("a chunk has usage that was not wanted", "stream: true", put(None, 0, "usage"), "chunks[0].usage"),
    ("a chunk has two choices", STREAM, put(lambda all: all * 2, 0, "choices"), "chunks[0].choices"),
    ("a chunk has another id", STREAM, put("cmpl-2", 1, "id"), "chunks[1].id"),
    ("a chunk is an error", STREAM, put({"error": {}}, 1), "chunks[1]"),
    ("a chunk comes after the end", STREAM, put("length", 0, "choices", 0, "finish_reason"), "chunks[1].choices[0]"),
    ("a text is lost in a stream", STREAM, put("", 0, "choices", 0, "text"), "choices[0].text"),
    ("a param is none", REFUSED, put(None, "error", "param"), "error.param"),
    ("a type is another", REFUSED, put("BadRequestError", "error", "type"), "error.type"),
    ("a code is missing", REFUSED, drop("error", "code"), "error.code"),
    ("a message is empty", REFUSED, put("", "error", "message"), "error.message"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "change", "path"), [broken[1:] for broken in WRONG], ids=[b[0] for b in WRONG])
def test_the_judge_finds_a_wrong_answer_and_says_where(name: str, change: Callable[[Any], None], path: str) -> None:
    broken = case(name)
    answer = right_answer(broken)
    change(answer)
    assert paths(judge_answer(broken, broken.status, answer))[:1] == [path]


def test_one_wrong_token_is_one_difference_and_what_follows_is_not_compared() -> None:
    broken = case(PLAIN)
    answer = right_answer(broken)
    arrays = answer["choices"][0]["logprobs"]
    arrays["tokens"][5:], arrays["token_logprobs"][5:] = [" boy", " who", " ran"], [-1.0, -2.0, -3.0]
    answer["choices"][0]["text"] = "another story"
    verdict = judge_answer(broken, 200, answer)
    assert paths(verdict) == ["choices[0].logprobs.tokens[5]"]
    assert "more than 0.05; 0.0002 is granted" in str(verdict.differences[0])


def test_another_status_is_one_difference_with_the_servers_own_words() -> None:
    verdict = judge_answer(case(PLAIN), 400, {"error": {"message": "logprobs must be 1"}})
    assert [str(d) for d in verdict.differences] == ["status: expected 200, got 400 (logprobs must be 1)"]
    assert paths(judge_answer(case(REFUSED), 200, {})) == ["status"]


def test_a_log_probability_within_the_tolerance_passes_and_is_measured() -> None:
    answer = right_answer(case(PLAIN))
    shift(3e-4, 2)(answer)
    verdict = judge_answer(case(PLAIN), 200, answer)
    assert verdict.passed
    assert verdict.worst_logprob == pytest.approx(3e-4)
    assert not judge_answer(case(PLAIN), 200, answer, Tolerance(2e-4, 1e-4)).passed


def test_labels_that_are_level_with_the_kth_may_take_its_place() -> None:
    lenient = Tolerance(0.0, 0.6)  # the second and third of `logprobs: 2` may be level
    answer = right_answer(case(PLAIN))
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    top[" cat"] = top.pop(" there") - 1
    assert judge_answer(case(PLAIN), 200, answer, lenient).passed
    assert not judge_answer(case(PLAIN), 200, answer).passed


TIE = "close: two logits"


def other_story(name: str) -> Any:
    """What an engine answers to the case that decides the tie the other way: the reference with a little more bias."""
    fields = {**case(name).fields, "logit_bias": {"404": 2.1592}}
    response = call(create_app(foresight(), tokenizer(), Settings()), "POST", "/v1/completions", json=fields)
    assert response.status_code == 200
    return response.json()


def test_a_token_that_rounding_decides_is_excused_and_what_follows_not_compared() -> None:
    for name in (TIE, f"{TIE}, without logprobs"):
        answer = other_story(name)
        assert answer["choices"][0]["text"] != case(name).choices[0]["text"]
        verdict = judge_answer(case(name), 200, answer)
        assert (paths(verdict), verdict.excused, verdict.tokens) == ([], 1, 1)
        strict = judge_answer(case(name), 200, answer, FLOAT32_TOLERANCE._replace(logit_error=1e-6))
        assert len(strict.differences) == 1
        assert strict.excused == 0


def test_a_token_that_is_none_of_the_rivals_is_not_excused() -> None:
    answer = other_story(TIE)
    answer["choices"][0]["logprobs"]["tokens"][0] = " in"
    assert paths(judge_answer(case(TIE), 200, answer)) == ["choices[0].logprobs.tokens[0]"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (put("length?", "choices", 0, "finish_reason"), "choices[0].finish_reason"),
        (drop(*L, "text_offset", -1), "choices[0].logprobs.text_offset"),
        (put(0, "usage", "total_tokens"), "usage.total_tokens"),
        (put(3, "usage", "prompt_tokens"), "usage.prompt_tokens"),
        (put(None, "choices", 0, "text"), "choices[0].text"),
    ],
)
def test_the_form_of_an_excused_answer_is_compared_all_the_same(change: Callable[[Any], None], path: str) -> None:
    answer = other_story(TIE)
    change(answer)
    assert path in paths(judge_answer(case(TIE), 200, answer))


def test_a_ranking_that_rounding_may_turn_is_excused_only_by_a_tolerance_that_large() -> None:
    """The two best are 0.018 apart."""
    answer = right_answer(case(RANKED))
    answer["choices"] = [answer["choices"][1] | {"index": 0}, answer["choices"][0] | {"index": 1}]
    assert not judge_answer(case(RANKED), 200, answer).passed
    verdict = judge_answer(case(RANKED), 200, answer, Tolerance(0.0, 0.01))
    assert (paths(verdict), verdict.excused) == ([], 2)


def test_a_tolerance_beyond_what_the_cases_know_is_refused() -> None:
    with pytest.raises(ValueError, match="logit error"):
        judge_answer(case(PLAIN), 200, {}, Tolerance(REACH * 2, 1.0))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[GoldenCase, Any, Any]:
    """A case, its right answer, and the same with any JSON in the place of any part."""
    chosen = draw(st.sampled_from([case for case in cases() if case.status == 200 or case.name == REFUSED]))
    right = right_answer(chosen)
    answer: Any = {"": copy.deepcopy(right)}
    node, key = answer, ""
    while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 5)):
        node = node[key]
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
    node[key] = draw(JSON)
    return chosen, right, answer[""]


@given(spoilt())
def test_the_judge_survives_any_json_in_any_place(spoilt: tuple[GoldenCase, Any, Any]) -> None:
    chosen, _, answer = spoilt
    verdict = judge_answer(chosen, chosen.status, answer)
    for difference in verdict.differences:
        assert str(difference)
        json.dumps(difference.to_json())


def test_a_body_is_the_files_own_with_the_model_named_as_the_server_does() -> None:
    for case in cases():
        if isinstance(case.sent, str):
            assert case.payload() == case.sent.encode()
            assert case.payload("other") == case.sent.replace(MODEL, "other").encode()
        else:
            assert json.loads(case.payload()) == case.sent
            renamed = {"model": "other"} if case.sent.get("model") == MODEL else {}
            assert json.loads(case.payload("other")) == {**case.sent, **renamed}
