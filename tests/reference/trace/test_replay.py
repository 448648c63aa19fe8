"""A finished sequence once more: the sampler's own draws, the right candidate, and where tokens are not the
reference's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gnomon.reference.body.reading import parse_json
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine, go_on
from gnomon.reference.errors import InvalidRequest, ModelNotFound
from gnomon.reference.prng import DrawKey
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import SamplingParams, Trace, nucleus, temper, trace_draw
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from gnomon.reference.trace import replay
from gnomon.reference.trace.explain import Draw, beside, explain
from gnomon.reference.trace.replay import Replay, Retracer, Task, TraceRequest, prepare_trace
from helpers.fake import EOT, FAKE_VOCAB, FakeEngine, hashed_logits
from helpers.models import tiny_llama

MODEL = "m"
PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.5, "frequency_penalty": 1.1, "presence_penalty": -0.7},
    {"logit_bias": {"101": 4, "7": -100}, "top_p": 0.5},
    {"top_p": 0},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferenceEngine, Tokenizer]:
    path = tiny_llama(tmp_path_factory.mktemp("model"))
    checkpoint = load_checkpoint(path)
    return ReferenceEngine(checkpoint), load_tokenizer(path, checkpoint.config.vocab_size)


@pytest.fixture
def fake(model: tuple[ReferenceEngine, Tokenizer]) -> tuple[FakeEngine, Tokenizer]:
    return FakeEngine(hashed_logits), model[1]


def completed(engine: ReferenceEngine, tokenizer: Tokenizer, body: dict[str, Any]) -> list[tuple[str, ...]]:
    """The labels of every choice's sampled tokens."""
    request = CompletionRequest.from_fields({**body, "logprobs": 0, "echo": False})
    choices = prepare(request, engine, tokenizer, MODEL).whole().choices
    return [choice.logprobs.tokens for choice in choices if choice.logprobs is not None]


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "the end", "max_tokens": 12, "seed": -5, **fields}


def told(
    engine: ReferenceEngine, tokenizer: Tokenizer, body: dict[str, Any], index: int, tokens: list[str], **more: Any
) -> dict[str, Any]:
    asked = TraceRequest.from_fields({"request": body, "index": index, "tokens": tokens, **more})
    task = prepare_trace(asked, engine, tokenizer, MODEL, 128)
    answer: dict[str, Any] = json.loads(
        json.dumps(Retracer(engine, tokenizer).carry_out(task).to_json(), allow_nan=False)
    )
    return answer


# ---- agreement


@pytest.mark.parametrize("fields", PARAMS, ids=str)
def test_the_engines_own_choices_agree_on_every_token(
    model: tuple[ReferenceEngine, Tokenizer], fields: dict[str, Any]
) -> None:
    engine, tokenizer = model
    body = body_of(prompt=["the end", "a"], n=2, **fields)
    for index, tokens in enumerate(completed(engine, tokenizer, body)):
        answer = told(engine, tokenizer, body, index, list(tokens))
        assert answer["agreement"] == {"tokens": len(tokens), "agree": len(tokens), "first_difference": None}
        assert answer["candidate"] == index % 2
        assert [step["token"] for step in answer["steps"]] == list(tokens)


def test_a_wrong_token_is_reported_where_it_stands_and_the_rest_is_judged_after_it(
    fake: tuple[FakeEngine, Tokenizer],
) -> None:
    engine, tokenizer = fake
    [tokens] = completed(engine, tokenizer, body_of())
    wrong = list(tokens)
    wrong[4] = next(label for label in ("x", "y") if label != wrong[4])
    answer = told(engine, tokenizer, body_of(), 0, wrong)
    steps = answer["steps"]
    assert answer["agreement"]["first_difference"] == 4
    assert [step["agrees"] for step in steps[:5]] == [True] * 4 + [False]
    assert (steps[4]["reference_token"], steps[4]["token"]) == (tokens[4], wrong[4])
    prompt, given = list(tokenizer.encode("the end").ids), [tokenizer.ids[label] for label in wrong]
    for t in range(5, 12):  # teacher-forced: after the wrong token, not after the one it should have been
        counts = np.bincount(given[:t], minlength=FAKE_VOCAB)
        own = trace_draw(hashed_logits([*prompt, *given[:t]]), counts, SamplingParams(), DrawKey(-5, 0, t)).token
        assert steps[t]["reference_id"] == own
    assert answer["agreement"]["agree"] == sum(step["agrees"] for step in steps)


def test_the_numbers_of_a_step_are_the_completions_own(model: tuple[ReferenceEngine, Tokenizer]) -> None:
    engine, tokenizer = model
    body = body_of(temperature=0.8, top_p=0.9)
    request = CompletionRequest.from_fields({**body, "logprobs": 0})
    logprobs = prepare(request, engine, tokenizer, MODEL).whole().choices[0].logprobs
    assert logprobs is not None
    answer = told(engine, tokenizer, body, 0, list(logprobs.tokens))
    np.testing.assert_allclose(
        [step["logprob"] for step in answer["steps"]], np.array(logprobs.token_logprobs, float), atol=1e-10
    )
    assert answer["prompt_tokens"] == [tokenizer.labels[v] for v in tokenizer.encode("the end").ids]
    assert answer["system_fingerprint"] == f"{engine.fingerprint}-{tokenizer.fingerprint}"
    assert (answer["object"], answer["model"], answer["draw"]) == ("completion.trace", MODEL, None)


def test_every_label_of_the_vocabulary_finds_back_to_its_id(model: tuple[ReferenceEngine, Tokenizer]) -> None:
    """Halves of characters, control characters, special tokens: all that a completion can show."""
    engine, tokenizer = model
    assert [tokenizer.ids[label] for label in tokenizer.labels] == list(range(FAKE_VOCAB))
    odd = [tokenizer.labels[v] for v in (0, 10, 240, 159, EOT, EOT + 1, 256)]
    assert odd[2].startswith("bytes:")
    answer = told(engine, tokenizer, json.loads(json.dumps(body_of())), 0, json.loads(json.dumps(odd)))
    assert [step["id"] for step in answer["steps"]] == [0, 10, 240, 159, EOT, EOT + 1, 256]
    assert [step["token"] for step in answer["steps"]] == odd


def test_no_tokens_are_nothing_to_draw(model: tuple[ReferenceEngine, Tokenizer]) -> None:
    answer = told(*model, body_of(max_tokens=0), 0, [])
    assert answer["agreement"] == {"tokens": 0, "agree": 0, "first_difference": None}


# ---- which candidate it was


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1])
def test_the_candidate_behind_a_choice_of_best_of_is_found(fake: tuple[FakeEngine, Tokenizer], seed: int) -> None:
    """Among 6 candidates of 8 tokens. That two of a seed's are alike has odds below one in a billion."""
    engine, tokenizer = fake
    body = body_of(seed=seed, max_tokens=8)
    every = completed(engine, tokenizer, {**body, "n": 6})
    for index, tokens in enumerate(completed(engine, tokenizer, {**body, "n": 3, "best_of": 6})):
        answer = told(engine, tokenizer, {**body, "n": 3, "best_of": 6}, index, list(tokens))
        assert every[answer["candidate"]] == tokens
        assert answer["agreement"]["agree"] == len(tokens)


def test_one_token_that_differs_hides_no_candidate(fake: tuple[FakeEngine, Tokenizer]) -> None:
    engine, tokenizer = fake
    every = completed(engine, tokenizer, body_of(n=6))
    for c, tokens in enumerate(every):
        changed = ["x" if tokens[0] != "x" else "y", *tokens[1:]]
        body = body_of(n=1, best_of=6)
        teacher = told(engine, tokenizer, body_of(n=6), c, changed)["agreement"]["agree"]
        found = told(engine, tokenizer, body, 0, changed)
        assert found["agreement"]["agree"] >= teacher


def test_greedy_candidates_are_known_by_their_rank(fake: tuple[FakeEngine, Tokenizer]) -> None:
    engine, tokenizer = fake
    body = body_of(temperature=0, n=2, best_of=3, seed=None)
    for index, tokens in enumerate(completed(engine, tokenizer, body)):
        assert told(engine, tokenizer, body, index, list(tokens))["candidate"] == index


# ---- one draw in full


@pytest.mark.parametrize("fields", PARAMS, ids=str)
def test_a_draw_is_the_samplers_trace(model: tuple[ReferenceEngine, Tokenizer], fields: dict[str, Any]) -> None:
    engine, tokenizer = model
    body = body_of(n=2, **fields)
    tokens = completed(engine, tokenizer, body)[1]
    prompt, ids = list(tokenizer.encode("the end").ids), [tokenizer.ids[label] for label in tokens]
    params = prepare(CompletionRequest.from_fields(body), engine, tokenizer, MODEL).params
    for step in (0, 5):
        draw = told(engine, tokenizer, body, 1, list(tokens), step=step)["draw"]
        logits = engine.last_logits([*prompt, *ids[:step]])
        own = trace_draw(logits, np.bincount(ids[:step], minlength=FAKE_VOCAB), params, DrawKey(-5, 1, step))
        assert (draw["winner"], draw["step"], draw["candidate"]) == (own.token, step, 1)
        assert draw["margin"] == (pytest.approx(own.margin) if math.isfinite(own.margin) else None)
        names = {"logit": own.logits, "logprob": own.logprobs, "z": own.penalized, "scaled": own.scaled,
                 "noise": own.noise, "score": own.score}  # fmt: skip
        for row in draw["candidates"]:
            for name, array in names.items():
                value = None if array is None or not np.isfinite(array[row["id"]]) else array[row["id"]]
                assert row[name] == (None if value is None else pytest.approx(value, abs=1e-9)), (name, row)
            assert row["z"] == pytest.approx(row["logit"] + row["bias"] + row["penalty"])
            assert row["kept"] == (None if own.kept is None else own.kept[row["id"]])
            assert row["count"] == ids[:step].count(row["id"])
            assert row["label"] == tokenizer.labels[row["id"]]


def test_steps_of_one_sequence_are_one_pass_of_the_model(fake: tuple[FakeEngine, Tokenizer]) -> None:
    passes = []
    engine, tokenizer = fake

    class Counted(FakeEngine):
        def states(self, tokens: Any, check: Callable[[], None] = go_on) -> Any:
            passes.append(len(tokens))
            return super().states(tokens, check)

    counted = Counted(hashed_logits)
    [tokens] = completed(engine, tokenizer, body_of())
    retracer = Retracer(counted, tokenizer)
    for step in (None, 0, 11, 3):
        asked = TraceRequest.from_fields({"request": body_of(), "tokens": list(tokens), "step": step})
        retracer.carry_out(prepare_trace(asked, counted, tokenizer, MODEL, 64))
    assert passes == [len(tokenizer.encode("the end").ids) + 11]
    asked = TraceRequest.from_fields({"request": body_of(), "tokens": list(tokens[:3])})
    retracer.carry_out(prepare_trace(asked, counted, tokenizer, MODEL, 64))
    assert len(passes) == 2


def test_other_parameters_for_the_same_tokens_are_counted_anew(fake: tuple[FakeEngine, Tokenizer]) -> None:
    engine, tokenizer = fake
    [tokens] = completed(engine, tokenizer, body_of())
    retracer = Retracer(engine, tokenizer)
    agreed = []
    for fields in ({}, {"seed": 6}, {"temperature": 0}, {"logit_bias": {"3": 100}}, {}):
        asked = TraceRequest.from_fields({"request": body_of(**fields), "tokens": list(tokens)})
        steps = retracer.carry_out(prepare_trace(asked, engine, tokenizer, MODEL, 64)).recount.steps
        agreed.append(sum(step.agrees for step in steps))
    assert agreed[0] == agreed[4] == 12
    assert max(agreed[1:4]) < 12


def test_a_step_has_the_same_bits_whatever_was_asked_for_before(
    model: tuple[ReferenceEngine, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = model
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 3 * FAKE_VOCAB)
    prompt, tokens = [1, 2, 3], [5, 6, 7, 8, 9, 10, 11, 12]
    forward, backward = Replay(engine, prompt, tokens), Replay(engine, prompt, tokens)
    there = [forward.logits(t).tobytes() for t in range(8)]
    back = [backward.logits(t).tobytes() for t in reversed(range(8))]
    assert there == back[::-1]
    np.testing.assert_allclose(forward.logits(4), engine.last_logits([*prompt, *tokens[:4]]), atol=1e-10)


class Enough(Exception):
    pass


def test_work_that_nobody_waits_for_ends_within_a_layer_and_within_a_draw(
    model: tuple[ReferenceEngine, Tokenizer],
) -> None:
    engine, tokenizer = model
    task = Task(MODEL, (1, 2), (3, 4, 5), SamplingParams(), 1, range(2), None)
    layers, before = engine.config.num_hidden_layers, []
    engine.states([1, 2], lambda: before.append("a layer"))
    assert len(before) == layers
    for allowed in (0, 1, layers, layers + 1, layers + 4):
        left = allowed

        def check() -> None:
            nonlocal left
            if left == 0:
                raise Enough
            left -= 1

        retracer = Retracer(engine, tokenizer)
        with pytest.raises(Enough):
            retracer.carry_out(task, check)
        assert retracer.carry_out(task).recount == Retracer(engine, tokenizer).carry_out(task).recount


# ---- what is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "request"),
        ({"request": None, "tokens": []}, "request"),
        ({"request": [], "tokens": []}, "request"),
        ({"request": body_of(), "tokens": None}, "tokens"),
        ({"request": body_of()}, "tokens"),
        ({"request": body_of(), "tokens": "ab"}, "tokens"),
        ({"request": body_of(), "tokens": ["a", 5]}, "tokens[1]"),
        ({"request": body_of(), "tokens": ["a", "\ud800"]}, "tokens[1]"),
        ({"request": body_of(), "tokens": ["a", "no such label"]}, "tokens[1]"),
        ({"request": body_of(), "tokens": [], "index": 1}, "index"),
        ({"request": body_of(n=2, prompt=["a", "b"]), "tokens": [], "index": 4}, "index"),
        ({"request": body_of(), "tokens": [], "index": -1}, "index"),
        ({"request": body_of(), "tokens": [], "index": True}, "index"),
        ({"request": body_of(), "tokens": ["a"], "step": 1}, "step"),
        ({"request": body_of(), "tokens": [], "step": 0}, "step"),
        ({"request": body_of(), "tokens": ["a"], "step": "0"}, "step"),
        ({"request": body_of(max_tokens=2), "tokens": ["a"] * 3}, "tokens"),
        ({"request": body_of(max_tokens=30), "tokens": ["a"] * 30}, "tokens"),
        ({"request": body_of(), "tokens": [], "steps": 1}, "steps"),
        ({"request": body_of(seed=None), "tokens": []}, "request.seed"),
        ({"request": body_of(temperature=3), "tokens": []}, "request.temperature"),
        ({"request": body_of(logit_bias={"x": 1}), "tokens": []}, "request.logit_bias.x"),
        ({"request": body_of(logit_bias={"9999": 1}), "tokens": []}, "request.logit_bias.9999"),
        ({"request": body_of(prompt=[]), "tokens": []}, "request.prompt"),
        ({"request": body_of(max_tokens=60), "tokens": []}, "request.max_tokens"),
        ({"request": body_of(top_k=1), "tokens": []}, "request.top_k"),
        ({"request": {"prompt": "a"}, "tokens": []}, "request.model"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_name(
    fake: tuple[FakeEngine, Tokenizer], body: dict[str, Any], param: str
) -> None:
    engine, tokenizer = fake
    with pytest.raises(InvalidRequest) as refused:
        prepare_trace(TraceRequest.from_fields(body), engine, tokenizer, MODEL, 32)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.message.startswith(param)


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"request": {"model": "m", "prompt": "a", "seed": 1}, "tokens": [], "tokens": []}', "tokens"),
        ('{"request": {"model": "m", "prompt": "a", "seed": 1, "seed": 1}, "tokens": []}', "request.seed"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_inside_and_outside(text: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match="twice") as refused:
        TraceRequest.from_fields(parse_json(text.encode()))
    assert refused.value.param == param


def test_null_is_as_good_as_absent_and_unknown_names_are_listed_inside_and_outside() -> None:
    asked = {"request": body_of(seed=1), "tokens": []}
    nulls: dict[str, Any] = {"request": body_of(seed=1, top_k=None), "tokens": [], "x": None, "index": None}
    assert TraceRequest.from_fields(nulls) == TraceRequest.from_fields(asked)
    with pytest.raises(InvalidRequest) as refused:
        TraceRequest.from_fields({"request": body_of(seed=1, topP=1), "tokens": [], "indx": 1})
    assert refused.value.param == "indx"
    assert refused.value.message.startswith(
        "indx: unknown field, and so is request.topP; indx is near index; request.topP is near top_p; the fields are "
    )


def test_another_model_is_not_found_here_either(fake: tuple[FakeEngine, Tokenizer]) -> None:
    engine, tokenizer = fake
    asked = TraceRequest.from_fields({"request": body_of(model="other"), "tokens": []})
    with pytest.raises(ModelNotFound) as refused:
        prepare_trace(asked, engine, tokenizer, MODEL, 64)
    assert (refused.value.status, refused.value.param) == (404, "request.model")


# ---- the table


def drawn(logits: Any, step: int = 2, **params: Any) -> Trace:
    counts = np.zeros(len(logits), np.int64)
    counts[3] = 2
    return trace_draw(np.asarray(logits, float), counts, SamplingParams(**params), DrawKey(9, 1, step))


def table(**params: Any) -> Draw:
    return explain(drawn(hashed_logits([1]), **params))


def test_the_table_has_every_token_that_mattered_in_the_order_of_the_nucleus() -> None:
    bias = {5: -30.0, 200: 2.0, 6: 0.0}
    of = drawn(hashed_logits([1]), top_p=0.7, logit_bias=bias)
    draw = explain(of, given=250)
    ids = [row.id for row in draw.rows]
    order = [int(v) for v in np.argsort(-of.penalized, kind="stable")]
    assert ids == sorted(ids, key=order.index)
    assert [row.rank for row in draw.rows] == [order.index(v) for v in ids]
    assert of.score is not None
    for ranking in (of.logprobs, of.penalized, np.where(np.isfinite(of.score), of.score, -np.inf)):
        assert set(np.argsort(-ranking, kind="stable")[:12].tolist()) <= set(ids)
    assert {5, 200, 250, draw.winner} <= set(ids)
    assert draw.runner_up == int(np.argsort(-of.score, kind="stable")[1])


def test_rows_and_others_are_the_whole_vocabulary() -> None:
    draw = table(top_p=0.9)
    assert draw.others.count + len(draw.rows) == FAKE_VOCAB
    assert draw.others.probability is not None
    assert draw.others.kept is not None
    total = sum(row.probability or 0.0 for row in draw.rows) + draw.others.probability
    assert total == pytest.approx(1)
    of = drawn(hashed_logits([1]), top_p=0.9)
    assert of.kept is not None
    assert draw.others.kept + sum(row.kept is True for row in draw.rows) == of.kept.sum()


def test_the_mass_before_a_token_decides_whether_it_is_kept() -> None:
    for top_p in (0.3, 0.9, 0.99):
        of = drawn(hashed_logits([1]), top_p=top_p)
        kept = nucleus(of.penalized, temper(of.penalized, 1.0), top_p)
        for row in explain(of).rows:
            assert row.mass_before is not None
            assert row.kept == bool(kept[row.id]) == (row.rank == 0 or row.mass_before < top_p)


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1, 2])
def test_the_chance_of_a_token_is_shared_among_the_kept_alone(top_p: float, temperature: float) -> None:
    of = drawn(hashed_logits([1]), temperature=temperature, top_p=top_p)
    draw = explain(of)
    assert of.scaled is not None
    assert of.kept is not None
    mass = np.exp(of.scaled)[of.kept].sum()
    for row in draw.rows:
        assert row.chance == pytest.approx(math.exp(of.scaled[row.id]) / mass if row.kept else 0, rel=1e-12)
        assert row.kept or row.chance == 0
    assert draw.others.chance is not None
    assert sum(row.chance or 0 for row in draw.rows) + draw.others.chance == pytest.approx(1)


@pytest.mark.parametrize(
    ("mass", "top_p", "text"),
    [(0.7971, 0.8, "79.7 %"), (0.79971, 0.8, "79.97 %"), (0.8004, 0.8, "80 %"), (0.8035, 0.803, "80.35 %"),
     (0.5904, 0.9, "59 %"), (0.8, 0.8, "80 %"), (0.799999999999, 0.8, "79.9999999999 %"), (0.0004, 0.0005, "0.04 %"),
     (0.99995, 0.9999, "99.995 %"), (1.0, 0.9, "100 %"), (0.8 - 1e-16, 0.8, "just under 80 %")],
)  # fmt: skip
def test_a_sum_beside_top_p_shows_on_which_side_it_is(mass: float, top_p: float, text: str) -> None:
    assert beside(mass, top_p) == text


def test_greedy_has_no_chance_in_it() -> None:
    draw = table(temperature=0)
    assert (draw.seed, draw.key, draw.is_greedy) == (None, None, True)
    for row in draw.rows:
        assert {row.scaled, row.probability, row.kept, row.words, row.noise, row.score} == {None}
    assert draw.to_json()["stages"] == ["report", "bias", "penalties", "greedy"]


def test_the_random_words_are_the_laws() -> None:
    """The known answer of LAW.md, section 4: seed −1, candidate 2, step 3, id 50256."""
    of = trace_draw(np.zeros(50257), np.zeros(50257, np.int64), SamplingParams(), DrawKey(-1, 2, 3))
    draw = explain(of, given=50256)
    row = draw.row(50256)
    assert draw.key == ("d3da3ac7", "40ba5d18")
    assert row.words == ("551bc202", "844c86ed")
    assert row.noise == pytest.approx(0.90597369, abs=1e-8)


@pytest.mark.parametrize(
    ("logits", "params", "expected"),
    [
        ([3.0, 1, 0, 0], {"temperature": 0}, {0: "won: the largest z, 2 ahead",
                                              1: "lost: its z is 2 below the winner's"}),
        ([3.0, 3, 0, 0], {"temperature": 0}, {0: "won: of equal zs the lower id wins", 1: "lost a tie to a lower id"}),
        ([3.0], {}, {0: "won: no other token was left"}),
        ([9.0, 1, 0, 0], {"top_p": 0}, {0: "won: no other token was left",
                                        1: "removed: top_p 0 keeps the first token alone"}),
        ([12.0, 1, 0, 0], {"top_p": 0.5}, {1: "removed by top_p 0.5: the tokens before it have >99.9 % already"}),
        ([9.0, 1, 0, 0], {"temperature": 1e-308}, {1: "could not win: at this temperature its probability is 0"}),
        ([9.0, 1, 0, 0], {"temperature": 0, "logit_bias": {1: 2.5}},
         {1: "raised by 2.5: its logit_bias; lost: its z is 5.5 below the winner's"}),
        ([9.0, 1, 0, 0], {"temperature": 0, "frequency_penalty": 0.5, "presence_penalty": 0.25},
         {3: "lowered by 1.25: a penalty for having come 2 times; lost: its z is 10.2 below the winner's"}),
    ],
)  # fmt: skip
def test_a_sentence_says_what_became_of_a_token(
    logits: list[float], params: dict[str, Any], expected: dict[int, str]
) -> None:
    counts = np.zeros(len(logits), np.int64)
    counts[3:] = 2
    draw = explain(trace_draw(np.array(logits), counts, SamplingParams(**params), DrawKey(9, 0, 0)))
    assert {v: draw.row(v).why for v in expected} == expected


def test_no_number_is_infinite_at_any_temperature() -> None:
    for params in (
        {"temperature": 1e-308},
        {"temperature": 0},
        {"top_p": 0},
        {"temperature": 2, "logit_bias": {3: -100}},
    ):
        json.dumps(table(**params).to_json(), allow_nan=False)
    alone = explain(trace_draw(np.zeros(1), np.zeros(1, np.int64), SamplingParams(), DrawKey(1, 0, 0)))
    assert (alone.runner_up, alone.margin, alone.others.count) == (None, None, 0)
    json.dumps(alone.to_json(), allow_nan=False)
