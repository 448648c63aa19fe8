"""An answer in pieces: the bytes of the whole, no call that makes much of them, and what is echoed made once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from gnomon.http import sse
from gnomon.http.answer import send_json
from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference import completion
from gnomon.reference.body import writing
from gnomon.reference.body.rankings import Rankings
from gnomon.reference.body.writing import BLOCK_BYTES, blocks
from gnomon.reference.completion import Run, prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FakeEngine, hashed_logits
from helpers.live import MODEL, post


def run_of(tokenizer: Tokenizer, context: int = 64, **fields: Any) -> Run:
    body = {"model": MODEL, "prompt": "a", "seed": 5, **fields}
    run = prepare(CompletionRequest.from_fields(body), FakeEngine(hashed_logits, context=context), tokenizer, MODEL)
    run.id, run.created = "cmpl-1", 1
    return run


PROMPTS = st.one_of(
    st.text(max_size=10), st.lists(st.text(max_size=8), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 259), min_size=1, max_size=8), min_size=1, max_size=3),
)  # fmt: skip


@given(
    prompt=PROMPTS, n=st.integers(1, 3), best_of=st.integers(0, 4), max_tokens=st.integers(0, 6),
    logprobs=st.one_of(st.none(), st.integers(0, 20)), echo=st.booleans(),
    stop=st.sampled_from([None, "e", ["a", "\n"]]),
    values=st.sampled_from([1, 3, 1024]),
)  # fmt: skip
def test_the_pieces_are_the_bytes_of_the_whole_and_of_every_chunk(
    tokenizer: Tokenizer, values: int, **fields: Any
) -> None:
    fields["best_of"] = fields["best_of"] if fields["best_of"] >= fields["n"] else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "VALUES_AT_ONCE", values)
        patch.setattr(writing, "CHARACTERS_AT_ONCE", values)
        *_, pieces = run_of(tokenizer, **fields).whole_bytes()
        whole = b"".join(pieces or ())
        assert whole == json_bytes(run_of(tokenizer, **fields).whole().to_json())
        fields |= {"best_of": None, "stream": True, "stream_options": {"include_usage": True}}
        chunks = [b"".join(pieces) for pieces in run_of(tokenizer, **fields).chunk_bytes() if pieces is not None]
        assert chunks == [json_bytes(chunk.to_json()) for chunk in run_of(tokenizer, **fields).chunks()]


LARGE: dict[str, Any] = {"prompt": [[97 + i % 26 for i in range(400)]] * 2, "n": 8, "echo": True, "logprobs": 20}


@pytest.mark.parametrize("stream", [False, True])
def test_no_call_encodes_more_than_some_thousand_numbers(
    tokenizer: Tokenizer, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(value: object) -> bytes:
        made = json_bytes(value)
        calls.append(len(made))
        return made

    for module in (completion, writing):
        if hasattr(module, "json_bytes"):
            monkeypatch.setattr(module, "json_bytes", counted)
    monkeypatch.setattr("gnomon.reference.response.json_bytes", counted)
    app = create_app(FakeEngine(hashed_logits, context=500), tokenizer, Settings())
    sizes: list[int] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            sizes.append(len(message.get("body", b"")))
            await send(message)

        await app(scope, receive, noted)

    answer = post(watched, **LARGE, max_tokens=1, seed=1, stream=stream)  # type: ignore[arg-type]
    assert answer.status_code == 200
    assert sum(sizes) == len(answer.content) > 3_000_000
    assert max(calls) < 64_000
    assert max(sizes) <= BLOCK_BYTES


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_echoed_is_encoded_once_a_prompt(
    tokenizer: Tokenizer, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encoded = writing.encoded

    def counted(text: str, entries: Any, at: range, labels: Any) -> Any:
        sizes.append(len(at))
        return encoded(text, entries, at, labels)

    monkeypatch.setattr(completion, "encoded", counted)
    run = run_of(tokenizer, context=500, **LARGE, max_tokens=1, stream=stream)
    made = [list(part) for part in (run.chunk_bytes() if stream else run.whole_bytes()) if part is not None]
    assert sorted(sizes) == [1] * 16 + [400] * 2
    large = [piece for pieces in made for piece in pieces if len(piece) > 10_000]
    assert len({id(piece) for piece in large}) * 8 == len(large)  # the same objects in all eight choices


def test_blocks_join_what_is_small_and_leave_what_is_large() -> None:
    large = [bytes(BLOCK_BYTES), bytes(BLOCK_BYTES // 8)]
    pieces = [b"a", b"", b"b", large[0], *[b"x" * 1000] * 200, large[1], b"c"]
    made = list(blocks(pieces))
    assert b"".join(made) == b"".join(pieces)
    assert any(piece is large[0] for piece in made)
    assert any(piece is large[1] for piece in made)
    assert len(made) == 1 + 1 + 4 + 1 + 1
    assert max(map(len, made)) <= BLOCK_BYTES
    assert list(blocks([])) == []


def test_a_whole_answer_announces_its_length_and_lets_others_in_between() -> None:
    sent: list[Message] = []
    others = 0

    async def send(message: Message) -> None:
        sent.append(message)

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    async def main() -> None:
        beside = asyncio.create_task(other())
        await send_json([b"abc", b"", b"de"], send)
        beside.cancel()

    asyncio.run(main())
    assert sent[0]["headers"] == [(b"content-length", b"5"), (b"content-type", b"application/json")]
    assert [(message["body"], message["more_body"]) for message in sent[1:]] == [
        (b"abc", True), (b"", True), (b"de", False),
    ]  # fmt: skip
    assert others >= 2


def test_no_comment_comes_between_two_pieces_of_an_event() -> None:
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        await asyncio.sleep(0.02)

    async def main() -> None:
        events = sse.Events(send)
        watching = asyncio.create_task(events.watch(0.001, lambda: None))
        await events.write(*[b"%d" % i for i in range(10)])
        watching.cancel()
        await events.end()

    asyncio.run(main())
    assert b"".join(sent) == b"0123456789" + sse.DONE


def test_rankings_give_back_what_they_were_given() -> None:
    given = [None, (), ((0, -0.1),), ((2**31, -1e-300), (7, -9999.0), (3, -0.30000000000000004))]
    kept = Rankings(given)
    assert list(kept) == given
    assert (kept[3], kept[-1], len(kept)) == (given[3], given[3], 4)
    assert list(kept[1:3]) == given[1:3]
    kept.append(given[2])
    assert kept == [*given, given[2]]
    assert kept != given
    assert kept == Rankings(kept)
