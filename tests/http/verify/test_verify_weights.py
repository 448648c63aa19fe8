"""`gnomon verify --reference`: our own server is exact; each fault is explained rightly; labels of any style."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ml_dtypes
import numpy as np
import pytest

from gnomon.http.verify.ask.client import Budget, Client
from gnomon.http.verify.ask.probe import Subject
from gnomon.http.verify.verdict import Verdict
from gnomon.http.verify.weights.compare import compare_weights
from gnomon.http.verify.weights.comparison import Comparison
from gnomon.http.verify.weights.labels import LabelledPlace, Style, TokenNames, places_of, trace_ids
from gnomon.http.verify.weights.labels import Listed as Named
from gnomon.http.verify.weights.questions import STORY
from gnomon.http.verify.weights.readings import Kind
from gnomon.http.verify.weights.resolved import grain
from gnomon.reference import engine as engine_module
from gnomon.reference import load, load_checkpoint, load_tokenizer
from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.errors import RequestError
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import json_bytes
from gnomon.reference.sampler import add_bias, penalize, report, sample
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import EOT, MERGES, tokenizer_files
from helpers.faults import answer
from helpers.live import MODEL
from helpers.models import tiny_llama

Body = dict[str, Any]
KINDS = {kind for kind in Kind if kind is not Kind.rounding}


class Model(NamedTuple):
    engine: ReferenceEngine
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return made(tmp_path_factory.mktemp("model"))


def made(directory: Path, seed: int = 0) -> Model:
    checkpoint = load_checkpoint(tiny_llama(directory, seed, scale=0.2))
    return Model(ReferenceEngine(checkpoint), load_tokenizer(directory, checkpoint.config.vocab_size))


def with_weights(model: Model, change: Callable[[Any], Any]) -> Model:
    """The model with every array of its weights changed."""

    def changed(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: changed(node) for name, node in tree.items()}
        return [changed(node) for node in tree] if isinstance(tree, list) else change(tree)

    other = ReferenceEngine.__new__(ReferenceEngine)
    other.__dict__.update(model.engine.__dict__)
    other.params = changed(model.engine.params)
    return Model(other, model.tokenizer)


def to_bits(bits: int, group: int = 16) -> Callable[[Any], Any]:
    """Quantised by a scheme of its own: small groups, and steps from the lowest value to the highest."""

    def change(array: Any) -> Any:
        if array.ndim != 2:
            return array
        grouped = array.reshape(len(array), -1, group)
        low, high = grouped.min(axis=-1, keepdims=True), grouped.max(axis=-1, keepdims=True)
        step = (high - low) / (2**bits - 1)
        return (np.round((grouped - low) / step) * step + low).reshape(array.shape)

    return change


class Server(httpx.AsyncBaseTransport):
    """Our server in process, which may read another request than was sent, and show another answer than it has."""

    def __init__(
        self,
        model: Model,
        asked: Callable[[Body], Body] = lambda body: body,
        answered: Callable[[Body, Body], Body] = lambda answer, body: answer,
    ) -> None:
        self.model, self.asked, self.answered = model, asked, answered

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        try:
            run = prepare(CompletionRequest.from_fields(self.asked(body)), *self.model, MODEL)
            content = json_bytes(self.answered(json.loads(run.whole().to_bytes()), body))
            return answer(200, "application/json", content)
        except RequestError as error:
            return answer(error.status, "application/json", json_bytes(error.to_json()))


def compared(server: httpx.AsyncBaseTransport, model: Model, budget: int = 5000) -> Comparison:
    async def run() -> Comparison:
        client = Client("http://gnomon/v1", None, Budget(budget), transport=server)
        try:
            return await compare_weights(Subject(client, MODEL), *model)
        finally:
            await client.close()

    return asyncio.run(run())


def kinds(comparison: Comparison) -> dict[str, Kind]:
    return {group.name: group.explanation.kind for group in comparison.groups}


def words(comparison: Comparison, group: str) -> str:
    return next(one.explanation.words for one in comparison.groups if one.name == group)


def lists(change: Callable[[Body, Body], None]) -> Callable[[Body, Body], Body]:
    """Shows other lists of log-probabilities; change is given the lists and the request."""

    def answered(answer: Body, body: Body) -> Body:
        for choice in answer["choices"]:
            if choice["logprobs"] is not None:
                change(choice["logprobs"], body)
        return answer

    return answered


ALL = {"greedy", "empty", "ids", "echo", "temperature", "bias", "penalties"}


# ---- our own server


def test_our_own_server_is_exact_and_every_sentence_is_honoured(model: Model) -> None:
    comparison = compared(Server(model), model)
    assert kinds(comparison) == dict.fromkeys(ALL, Kind.rounding)
    assert max(group.fit.worst for group in comparison.groups) < 1e-12
    assert {finding.judgement.verdict for finding in comparison.findings()} == {Verdict.honoured}
    assert {finding.case.name.split(".")[1] for finding in comparison.findings()} == ALL | {"choices"}
    assert comparison.unresolved == 0
    assert not comparison.departs
    assert not comparison.notes
    assert all(group.overlap == 1 for group in comparison.groups)
    assert all(group.fit.values > 300 for group in comparison.groups)
    json.dumps(comparison.to_json(), allow_nan=False)


@pytest.mark.slow
def test_float32_values_of_the_embedded_model_are_rounding_and_say_how_much() -> None:
    """The values are moved as float32's are: by up to 5e-5."""
    embedded = Model(*load())
    rng = np.random.default_rng(0)

    def moved(given: Body, body: Body) -> None:
        for at, top in enumerate(given["top_logprobs"]):
            for label in top or {}:
                top[label] += float(rng.uniform(-5e-5, 5e-5))
                if label == given["tokens"][at]:
                    given["token_logprobs"][at] = top[label]

    comparison = compared(Server(embedded, answered=lists(moved)), embedded, budget=150)
    assert set(kinds(comparison).values()) == {Kind.rounding}
    assert comparison.sentence.startswith("float32 rounding: ")
    assert "off by 5.0e-05 at most" in comparison.sentence
    assert {finding.judgement.verdict for finding in comparison.findings()} == {Verdict.honoured}


def test_the_worst_place_is_named_with_both_values(model: Model) -> None:
    def moved(given: Body, body: Body) -> None:
        if body["prompt"].__class__ is str and body["prompt"].startswith("1, 2") and "echo" not in body:
            given["token_logprobs"][7] -= 0.75
            given["top_logprobs"][7][given["tokens"][7]] -= 0.75

    comparison = compared(Server(model, answered=lists(moved)), model)
    worst = next(group.worst for group in comparison.groups if group.name == "greedy")
    assert worst is not None
    assert (worst.trial, worst.place) == ("digits", 7)
    assert worst.theirs == pytest.approx(worst.ours - 0.75)
    (row,) = (row for row in comparison.tables()[1][2] if row[0] == "greedy")
    assert row[1].startswith("digits, place 7")


# ---- weights of fewer bits: reported, not accused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda array: array.astype(np.float16).astype(np.float64), "weights rounded to float16"),
        (lambda array: array.astype(ml_dtypes.bfloat16).astype(np.float64), "weights rounded to bfloat16"),
        (to_bits(8), "weights quantised to 8 bits"),
        (to_bits(4), "weights quantised to 4 bits"),
    ],
    ids=["float16", "bfloat16", "8 bits", "4 bits"],
)
def test_weights_of_fewer_bits_are_recognized_and_not_accused(
    change: Callable[[Any], Any], said: str, model: Model
) -> None:
    comparison = compared(Server(with_weights(model, change)), model)
    assert set(kinds(comparison).values()) == {Kind.precision}, comparison.sentence
    assert said in words(comparison, "greedy")
    verdicts = {finding.case.name: finding.judgement.verdict for finding in comparison.findings()}
    assert verdicts.pop("weights.choices") is Verdict.honoured  # near-ties are excused
    assert set(verdicts.values()) == {Verdict.unclear}
    assert not comparison.departs


def test_rounded_weights_that_are_rounded_alike_leave_nothing(model: Model) -> None:
    comparison = compared(Server(with_weights(model, lambda a: a.astype(np.float16).astype(np.float64))), model)
    greedy = comparison.groups[0]
    assert greedy.fit.worst > 1e-3
    assert greedy.explanation.left.worst < 1e-12


def test_one_cause_is_said_of_all_and_its_size_is_looked_for_once(model: Model) -> None:
    comparison = compared(Server(with_weights(model, to_bits(3))), model)
    assert len({group.explanation.words for group in comparison.groups}) == 1, comparison.sentence
    assert [bool(group.explanation.tried) for group in comparison.groups] == [True] + [False] * 6
    assert len(comparison.tables()) == 3


# ---- processed values


def processing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any, Any], Any]) -> None:
    """Reports log-probabilities of change(logits, counts, params) from now on."""

    def processed(logits: Any, counts: Any, params: Any, *rest: Any, **named: Any) -> Any:
        token, _ = sample(logits, counts, params, *rest, **named)
        return token, report(change(logits, counts, params))

    monkeypatch.setattr(engine_module, "sample", processed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ("temperature", lambda l, c, p: l / (p.temperature or 1), "the temperature of 0.5 inside the values"),
        ("bias", lambda l, c, p: add_bias(l, p.logit_bias), "the bias inside the values"),
        (
            "penalties",
            lambda l, c, p: penalize(l, c, p.frequency_penalty, p.presence_penalty),
            "the penalties inside the values",
        ),
    ],
    ids=["temperature", "bias", "penalties"],
)
def test_values_taken_after_a_stage_are_told_from_raw_ones(
    group: str, change: Callable[[Any, Any, Any], Any], said: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    processing(monkeypatch, change)
    comparison = compared(Server(model), model)
    assert kinds(comparison) == {**dict.fromkeys(ALL, Kind.rounding), group: Kind.processed}
    assert words(comparison, group) == said
    (finding,) = (one for one in comparison.findings() if one.judgement.verdict.is_finding)
    assert finding.case.name == f"weights.{group}"
    assert f"consistent with {said}, which leaves at most" in finding.judgement.reason


def test_a_temperature_that_nobody_asked_for_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    processing(monkeypatch, lambda logits, counts, params: logits / 0.8)
    comparison = compared(Server(model), model)
    assert words(comparison, "greedy") == "a temperature of 0.8 inside the values, which was not asked for"
    assert kinds(comparison)["greedy"] is Kind.processed
    assert kinds(comparison)["echo"] is Kind.rounding  # scores are not sampled


def test_a_temperature_inside_is_found_in_the_arithmetic_of_fewer_bits(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    processing(monkeypatch, lambda logits, counts, params: logits / (params.temperature or 1))
    bfloat16 = with_weights(model, lambda array: array.astype(ml_dtypes.bfloat16).astype(np.float64))
    comparison = compared(Server(bfloat16), model)
    assert kinds(comparison) == {**dict.fromkeys(ALL, Kind.precision), "temperature": Kind.processed}
    assert "the temperature of 0.5 inside the values" in words(comparison, "temperature")
    assert "bfloat16" in words(comparison, "temperature")


def test_values_over_the_listed_tokens_alone_are_told(model: Model) -> None:
    def renormalized(given: Body, body: Body) -> None:
        for at, top in enumerate(given["top_logprobs"]):
            total = float(np.log(np.exp(list(top.values())).sum())) if top else 0.0
            for label in top or {}:
                top[label] -= total
                if label == given["tokens"][at]:
                    given["token_logprobs"][at] = top[label]

    comparison = compared(Server(model, answered=lists(renormalized)), model)
    assert words(comparison, "greedy") == "values made to add up to 1 over the listed tokens"


# ---- places and prompts


def shift_echo(given: Body, body: Body) -> None:
    """Each place has the numbers of the next one, lists and all."""
    if body.get("echo"):
        for name in ("token_logprobs", "top_logprobs"):
            given[name] = [*given[name][:1], *given[name][2:], given[name][-1]]


def test_an_echo_shifted_by_one_place_is_told(model: Model) -> None:
    comparison = compared(Server(model, answered=lists(shift_echo)), model)
    assert kinds(comparison) == {**dict.fromkeys(ALL, Kind.rounding), "echo": Kind.shifted}
    assert words(comparison, "echo") == "the values of the place after, with its token's"


def test_a_begin_token_that_the_server_puts_before_prompts_is_told(model: Model) -> None:
    tokenizer = replace(model.tokenizer, bos_id=EOT)
    comparison = compared(Server(Model(model.engine, tokenizer)), model)
    expected = f"a prompt encoded otherwise: <|endoftext|> (id {EOT}) before the prompt"
    assert words(comparison, "greedy") == words(comparison, "temperature") == expected
    assert kinds(comparison)["ids"] is kinds(comparison)["empty"] is Kind.rounding
    greedy = next(finding for finding in comparison.findings() if finding.case.name == "weights.greedy")
    assert greedy.judgement.verdict is Verdict.wrong
    n = len(model.tokenizer.encode(STORY).ids)
    assert f"the prompt of “a story” is billed as {n + 1} tokens, and has {n} here" in greedy.judgement.reason


def test_a_begin_token_that_the_server_leaves_out_is_told(model: Model) -> None:
    mine = Model(model.engine, replace(model.tokenizer, bos_id=EOT))
    comparison = compared(Server(model), mine)
    expected = "a prompt encoded otherwise: the prompt without the token that begins a document"
    assert words(comparison, "greedy") == expected
    assert comparison.departs


def test_a_tokenizer_without_its_merges_is_told(model: Model, tmp_path: Path) -> None:
    vocabulary = json.loads((tokenizer_files(tmp_path) / "tokenizer.json").read_text())["model"]
    tokenizer_files(tmp_path, model={**vocabulary, "merges": []})
    other = Model(model.engine, load_tokenizer(tmp_path, model.engine.vocab_size))
    assert len(other.tokenizer.encode("the").ids) > len(model.tokenizer.encode("the").ids)
    comparison = compared(Server(other), model)
    assert words(comparison, "greedy").startswith("a prompt encoded otherwise: the prompt as its echo shows it")
    assert kinds(comparison)["ids"] is Kind.rounding


@pytest.mark.slow
def test_other_weights_are_another_model(model: Model, tmp_path: Path) -> None:
    comparison = compared(Server(made(tmp_path / "other", seed=1)), model)
    assert set(kinds(comparison).values()) == {Kind.model}, comparison.sentence
    assert "another model or vocabulary" in words(comparison, "greedy")
    assert comparison.departs
    choices = next(finding for finding in comparison.findings() if finding.case.name == "weights.choices")
    assert choices.judgement.verdict is Verdict.unclear  # said once, where it is


def test_what_nothing_explains_is_said_to_be_unexplained(model: Model) -> None:
    def lowered(given: Body, body: Body) -> None:
        for at, top in enumerate(given["top_logprobs"]):
            for label in top or {}:
                top[label] -= 0.3
                if label == given["tokens"][at]:
                    given["token_logprobs"][at] = top[label]

    comparison = compared(Server(model, answered=lists(lowered)), model)
    assert set(kinds(comparison).values()) == {Kind.unexplained}, comparison.sentence
    assert "unexplained" in comparison.sentence
    assert comparison.departs


# ---- greedy choices


def test_a_greedy_choice_against_the_servers_own_values_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A penalty on repetition that nobody asked for moves choices and no value."""

    def repeats_less(logits: Any, counts: Any, params: Any, *rest: Any, **named: Any) -> Any:
        token, _ = sample(logits - 3.0 * (counts > 0), counts, params, *rest, **named)
        return token, report(logits)

    monkeypatch.setattr(engine_module, "sample", repeats_less)
    loops = with_weights(model, lambda array: array)
    comparison = compared(Server(loops), model)
    assert set(kinds(comparison).values()) == {Kind.rounding}
    (finding,) = (one for one in comparison.findings() if one.judgement.verdict.is_finding)
    assert finding.case.name == "weights.choices"
    assert "consistent with a penalty on repetition" in finding.judgement.reason


# ---- labels of other servers


def renamed(tokenizer: Tokenizer, name: Callable[[int], str]) -> Callable[[Body, Body], Body]:
    """Labels as another server has them; where two of a ranking are alike, one is lost."""
    ids = {label: v for v, label in enumerate(tokenizer.labels)}

    def change(given: Body, body: Body) -> None:
        given["tokens"] = [name(ids[label]) for label in given["tokens"]]
        given["top_logprobs"] = [
            None if top is None else {name(ids[label]): lp for label, lp in top.items()}
            for top in given["top_logprobs"]
        ]

    return lists(change)


def test_decoded_text_is_resolved_and_what_is_ambiguous_left_out_and_counted(model: Model) -> None:
    tokenizer = model.tokenizer
    decode = renamed(tokenizer, lambda v: tokenizer.prompt_bytes(v).decode("utf-8", "replace"))
    comparison = compared(Server(model, answered=decode), model)
    assert comparison.style is Style.text
    assert set(kinds(comparison).values()) == {Kind.rounding}, comparison.sentence
    assert comparison.unresolved > 0  # U+FFFD is half of the bytes
    assert any("does not say the id" in note for note in comparison.notes)


def test_pieces_of_the_vocabulary_are_resolved_without_exception(model: Model) -> None:
    pieces = renamed(model.tokenizer, lambda v: str(model.tokenizer.parsing.id_to_token(v)))
    comparison = compared(Server(model, answered=pieces), model)
    assert comparison.style is Style.piece
    assert set(kinds(comparison).values()) == {Kind.rounding}
    assert comparison.unresolved == 0


@pytest.mark.parametrize("with_id", [True, False], ids=["id", "bytes"])
def test_ids_and_bytes_beside_labels_are_taken_as_they_are(with_id: bool, model: Model) -> None:
    tokenizer, ids = model.tokenizer, {label: v for v, label in enumerate(model.tokenizer.labels)}

    def entry(label: str, lp: float | None) -> Body:
        v = ids[label]
        one = {"token": "?", "logprob": lp, "bytes": list(tokenizer.prompt_bytes(v))}
        return {**one, "id": v} if with_id else {**one, "token": tokenizer.special.get(v, "?")}

    def content(answer: Body, body: Body) -> Body:
        for choice in answer["choices"]:
            if choice["logprobs"] is not None:
                lists = [choice["logprobs"][name] for name in ("tokens", "token_logprobs", "top_logprobs")]
                places = [
                    {**entry(label, lp), "top_logprobs": [entry(*one) for one in (top or {}).items()]}
                    for label, lp, top in zip(*lists, strict=True)
                ]
                choice["logprobs"] = {"content": places}
        return answer

    comparison = compared(Server(model, answered=content), model)
    assert kinds(comparison) == dict.fromkeys(ALL, Kind.rounding)
    assert comparison.unresolved == 0


def test_bytes_of_one_character_are_told_by_the_text_they_make(model: Model) -> None:
    """A server that decodes while it goes calls the first byte "" and the last one the character."""
    names = TokenNames(model.tokenizer)
    places = [LabelledPlace(Named(label, -1.0), ()) for label in ("o", "", "é", "n")]
    ids = trace_ids(names, places, "oén", Style.text, frozenset())
    assert b"".join(model.tokenizer.token_bytes[v] for v in ids if v is not None) == "oén".encode()
    assert None not in ids
    ends = trace_ids(names, [*places, LabelledPlace(Named("", -1.0), ())], "oén", Style.text, frozenset({EOT}))
    assert ends == (*ids, EOT)


def test_a_space_that_labels_lack_is_told_by_the_text(model: Model) -> None:
    names, the = TokenNames(model.tokenizer), 256 + MERGES.index("Ġt he")
    places = [LabelledPlace(Named("the", -1.0), ()), LabelledPlace(Named("n", -1.0), ())]
    assert trace_ids(names, places, " then", Style.stripped, frozenset())[0] == the
    assert names.style([(places, " then")]) is Style.stripped


def test_a_text_that_is_a_byte_of_the_fallback_too_is_the_ordinary_token(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<0x41>": 1, "A": 2, "▁A": 3, "▁": 4}
    specials = [{"id": 0, "content": "<unk>", "special": True, "single_word": False, "lstrip": False}]
    specials[0] |= {"rstrip": False, "normalized": False}
    bpe = {"type": "BPE", "vocab": vocabulary, "merges": [["▁", "A"]], "byte_fallback": True, "unk_token": "<unk>"}
    bars = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoder = {"type": "Sequence", "decoders": [bars, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    spec = {"version": "1.0", "added_tokens": specials, "decoder": decoder, "model": bpe}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    names = TokenNames(load_tokenizer(tmp_path, len(vocabulary)))
    assert names.ids(Named("A", -1.0), Style.text) == (2,)
    assert names.ids(Named("<0x41>", -1.0), Style.piece) == (1,)
    assert names.ids(Named("?", -1.0, data=b"A"), Style.text) == (2,)
    assert names.ids(Named("A", -1.0), Style.stripped) == (1, 2, 3)
    assert names.one(Named("A", -1.0), Style.stripped) is None


def test_token_ids_as_labels_are_ids(model: Model) -> None:
    numbered = renamed(model.tokenizer, lambda v: f"token_id:{v}")
    comparison = compared(Server(model, answered=numbered), model)
    assert set(kinds(comparison).values()) == {Kind.rounding}
    assert comparison.unresolved == 0


# ---- servers with less


def test_a_server_with_at_most_five_log_probabilities_is_asked_for_five(model: Model) -> None:
    def at_most_five(body: Body) -> Body:
        return {**body, "logprobs": 99} if body.get("logprobs", 0) > 5 else body

    comparison = compared(Server(model, asked=at_most_five), model)
    assert kinds(comparison) == dict.fromkeys(ALL, Kind.rounding)
    assert comparison.listed < 16 * 6 * 20
    assert all(group.overlap == 1 for group in comparison.groups)


def test_a_server_without_echo_is_compared_in_the_rest(model: Model) -> None:
    comparison = compared(Server(model, asked=lambda body: {**body, "echo": False}), model)
    assert kinds(comparison) == dict.fromkeys(ALL - {"echo"}, Kind.rounding)
    assert sum("is not echoed" in note for note in comparison.notes) == 3


def test_without_log_probabilities_it_says_that_it_cannot_compare(model: Model) -> None:
    comparison = compared(Server(model, asked=lambda body: {**body, "logprobs": None}), model)
    assert comparison.sentence == "cannot compare: the server gives no log-probabilities"
    assert [finding.judgement.verdict for finding in comparison.findings()] == [Verdict.unclear]
    assert comparison.tables() == ()
    assert comparison.rows() == ()
    assert not comparison.departs
    json.dumps(comparison.to_json())


def test_a_refused_request_is_noted_and_the_rest_compared(model: Model) -> None:
    def no_empty(body: Body) -> Body:
        return {**body, "prompt": 1.5} if body["prompt"] == "" else body

    comparison = compared(Server(model, asked=no_empty), model)
    assert kinds(comparison) == dict.fromkeys(ALL - {"empty"}, Kind.rounding)
    assert any(note.startswith("an empty prompt: refused: prompt") for note in comparison.notes)


def test_a_budget_that_ends_early_leaves_what_was_compared(model: Model) -> None:
    comparison = compared(Server(model), model, budget=140)
    assert comparison.notes[-1] == "the budget of tokens is spent"
    assert kinds(comparison).get("greedy") is Kind.rounding
    assert compared(Server(model), model, budget=10).sentence == "cannot compare: the budget of tokens is spent"


def test_values_of_few_decimals_are_rounded_and_said_to_be(model: Model) -> None:
    def rounded(given: Body, body: Body) -> None:
        given["token_logprobs"] = [None if lp is None else round(lp, 3) for lp in given["token_logprobs"]]
        given["top_logprobs"] = [
            None if top is None else {label: round(lp, 3) for label, lp in top.items()} for top in given["top_logprobs"]
        ]

    comparison = compared(Server(model, answered=lists(rounded)), model)
    assert set(kinds(comparison).values()) == {Kind.rounding}
    assert words(comparison, "greedy") == "float32 rounding and values that are written with 3 decimals"
    assert grain([-0.5] * 20) == 0.1
    assert grain([-0.123456] * 20) == 0


def test_lists_that_are_none_are_not_read() -> None:
    assert places_of({"logprobs": None}) is None
    assert places_of({"logprobs": {"tokens": ["a"], "token_logprobs": [], "top_logprobs": []}}) is None
    assert places_of({"logprobs": {"content": "no"}}) is None
