"""The client most people have: what the openai package sends is understood, and what it is sent it understands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.request import FIELDS
from helpers.fake import FakeEngine, fake_tokenizer, hashed_logits
from helpers.live import MODEL, serving

EVERY_FIELD: dict[str, Any] = {
    "model": MODEL,
    "prompt": ["the end", "a"],
    "max_tokens": 8,
    "n": 2,
    "best_of": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {"97": 3, "50": -100},
    "logprobs": 2,
    "echo": True,
    "stop": ["zz", "qq"],
    "seed": -1,
    "stream": False,
    "stream_options": None,
    "suffix": "",
    "user": "someone",
}


def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
    return hashed_logits(tokens) * (np.nan if tokens[0] == ord("!") else 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tokenizer = fake_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with serving(create_app(FakeEngine(logits_of), tokenizer, Settings())) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base, api_key="any", max_retries=0) as client:
        yield client


def test_every_field_of_the_law_can_be_sent(client: openai.OpenAI) -> None:
    assert set(EVERY_FIELD) == {field.name for field in FIELDS}
    answer = client.completions.create(**EVERY_FIELD)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text.startswith(EVERY_FIELD["prompt"][choice.index // 2]) for choice in answer.choices)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "length")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert choice.logprobs.token_logprobs is not None
        assert choice.logprobs.token_logprobs[0] is None
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    assert client.completions.create(**EVERY_FIELD).choices == answer.choices


def test_defaults_are_the_laws(client: openai.OpenAI) -> None:
    bias = {"266": -100}  # no end of text
    one = client.completions.create(model=MODEL, prompt="a", seed=5, logit_bias=bias)
    same = client.completions.create(model=MODEL, prompt=[97], seed=5, temperature=1, max_tokens=16, logit_bias=bias)
    assert one.choices == same.choices
    assert one.usage is not None
    assert one.usage.completion_tokens == 16


@pytest.mark.parametrize("key", ["any", "sk-" + "x" * 500])
def test_any_key_opens(base: str, key: str) -> None:
    with openai.OpenAI(base_url=base, api_key=key) as client:
        assert client.completions.create(model=MODEL, prompt="a", max_tokens=0).choices[0].text == ""


def test_models_are_listed_with_their_context(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "gnomon")
    assert model.model_extra == {"max_model_len": 64}


def test_a_stream_adds_up_to_the_whole_and_ends_with_the_usage(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {**EVERY_FIELD, "best_of": None}
    whole = client.completions.create(**fields)
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    texts, reasons, usage = [""] * 4, [None] * 4, None
    for chunk in client.completions.create(**fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_async_answers_and_streams_side_by_side(base: str, client: openai.OpenAI) -> None:
    alone = [client.completions.create(model=MODEL, prompt="the", seed=seed).choices[0].text for seed in range(8)]

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=base, api_key="any", max_retries=0) as many:

            async def whole(seed: int) -> str:
                return (await many.completions.create(model=MODEL, prompt="the", seed=seed)).choices[0].text

            async def streamed(seed: int) -> str:
                stream = await many.completions.create(model=MODEL, prompt="the", seed=seed, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(streamed(seed) if seed % 2 else whole(seed) for seed in range(8)))

    assert asyncio.run(run()) == alone


def test_a_stream_that_is_left_early_can_be_closed(client: openai.OpenAI) -> None:
    with client.completions.create(model=MODEL, prompt="a", max_tokens=60, stream=True) as stream:
        next(iter(stream))
    assert client.completions.create(model=MODEL, prompt="a", max_tokens=0).choices


def test_a_wrong_field_is_a_bad_request_that_names_it(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="temperature: 3 is not allowed") as caught:
            client.completions.create(model=MODEL, prompt="a", temperature=3, stream=stream)
        error = caught.value
        assert (error.status_code, error.param, error.type, error.code) == (
            400, "temperature", "invalid_request_error", None,
        )  # fmt: skip
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="a", extra_body={"min_p": 0.1})
    assert caught.value.param == "min_p"


def test_a_prompt_beyond_the_context_is_told_by_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is \d+ tokens") as caught:
        client.completions.create(model=MODEL, prompt="a", max_tokens=10**6)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")


def test_a_model_can_be_retrieved_by_its_id(client: openai.OpenAI) -> None:
    assert client.models.retrieve(MODEL) == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("owner/name")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_an_unknown_model_and_an_unknown_path_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-3.5-turbo-instruct", prompt="a")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(
        openai.NotFoundError, match=r"no such path.*send its text as the prompt of POST /v1/completions"
    ):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])


def test_a_failing_engine_is_an_internal_server_error(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="not finite"):
            client.completions.create(model=MODEL, prompt="!", stream=stream)


def test_an_error_in_the_middle_of_a_stream_is_raised(tmp_path: Path) -> None:
    def fails_later(tokens: Sequence[int]) -> NDArray[np.float64]:
        return hashed_logits(tokens) * (np.nan if len(tokens) > 5 else 1)

    app = create_app(FakeEngine(fails_later), fake_tokenizer(tmp_path), Settings())
    with serving(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        stream = client.completions.create(
            model=MODEL, prompt=[97], stream=True, logit_bias={"266": -100}, temperature=0
        )
        assert next(stream).choices
        with pytest.raises(openai.APIError, match="not finite"):
            list(stream)
