"""From the prompts of a request to the ids that the model sees (LAW.md, sections 2 and 9).

    encode_prompts   all of a request: what cannot fit is refused as soon as that is known
    encode_prompt    one prompt: a string is encoded, ids are used as they are
    InfillEncoder    prompts with a suffix: the markers and both texts in the order that the model was taught

Decided here, where the law leaves room: `null` and `""` become the BOS alone for a tokenizer that puts one before every
string, since that is how its documents begin; else the end-of-text token. With `suffix`, `null` and `""` are the
empty text before the gap, with no such token. A string that encodes to nothing is refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from gnomon.reference.body.kept import KeptPrompt
from gnomon.reference.body.shown import shown
from gnomon.reference.engine import Engine
from gnomon.reference.errors import ContextExceeded, InvalidRequest
from gnomon.reference.request import CompletionRequest, Prompt
from gnomon.reference.text.utf8 import Decoder
from gnomon.reference.tokenizer import TO_ITS_END, Effort, Encoding, Tokenizer, TokenizerFailed, TooLong, UnknownText


class EncodedPrompt(NamedTuple):
    """A prompt as the model sees it (`ids`, P of the law) and as the user does (`text`); `starts`: P's text offsets."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    text: str

    def kept(self, request: CompletionRequest) -> KeptPrompt:
        """What the answer to this request needs of it."""
        starts = self.starts if request.echo and request.logprobs is not None else ()
        return KeptPrompt(array("I", self.ids), array("I", starts), self.text if request.echo else "", len(self.text))


class MoreThanMayWait(InvalidRequest):
    """400: the request may come to more tokens than a server ever lets wait, so no waiting could cure it."""

    def __init__(self, tokens: int, most: int, at_least: bool = False) -> None:
        message = (
            f"max_tokens: the request may come to {'at least ' * at_least}{tokens} tokens; at most {most} on this "
            "server: lower max_tokens, n, best_of or the number of prompts"
        )
        super().__init__("max_tokens", message)


def encode_prompts(
    request: CompletionRequest, engine: Engine, tokenizer: Tokenizer, effort: Effort, most_tokens: int | None
) -> tuple[KeptPrompt, ...]:
    """All prompts of a request. What cannot fit is refused as soon as it is known: a prompt by its bytes, before any
    text is encoded; all of them together by what is known of those that are left, before each one.

    effort: what is of no use is more than the model's context.
    """
    suffix = InfillEncoder(request, tokenizer, effort) if request.suffix else None
    least = [least_tokens(prompt, tokenizer) + (suffix.least if suffix else 0) for prompt in request.prompts]
    for j, tokens in enumerate(least):
        is_known = not isinstance(request.prompts[j], str)
        if tokens + (request.max_tokens if is_known else 0) > engine.context:
            raise _exceeded(j, tokens, request, engine.context, at_least=not is_known)
    sampled = len(least) * request.candidates * request.max_tokens
    total, prompts = sum(least) + sampled, []
    may_fit = max(least) + request.max_tokens <= engine.context  # or the context is what is exceeded
    for j, prompt in enumerate(request.prompts):
        if most_tokens is not None and total > most_tokens and may_fit:
            raise MoreThanMayWait(total, most_tokens, at_least=True)
        if effort.work is not None:
            effort.work.check()
        try:
            encoded = suffix.infill(prompt) if suffix else encode_prompt(prompt, engine, tokenizer, effort)
        except TooLong as error:
            raise _exceeded(j, error.count, request, engine.context, at_least=suffix is not None) from None
        if len(encoded.ids) + request.max_tokens > engine.context:
            raise _exceeded(j, len(encoded.ids), request, engine.context)
        prompts.append(encoded.kept(request))
        total += len(encoded.ids) - least[j]
    if most_tokens is not None and total > most_tokens:
        raise MoreThanMayWait(total, most_tokens)
    return tuple(prompts)


def least_tokens(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """How many tokens the prompt has at least, as far as is known without encoding it."""
    return tokenizer.least_tokens(prompt) if isinstance(prompt, str) else len(prompt)


def _exceeded(j: int, tokens: int, request: CompletionRequest, context: int, at_least: bool = False) -> ContextExceeded:
    name = "the prompt" if len(request.prompts) == 1 else f"prompt[{j}]"
    return ContextExceeded(name, tokens, request.max_tokens, context, at_least)


def encode_prompt(prompt: Prompt, engine: Engine, tokenizer: Tokenizer, effort: Effort = TO_ITS_END) -> EncodedPrompt:
    """Section 2. A string: encoded, special tokens' literals parsed, spans from the tokenizer. Ids: used verbatim."""
    if isinstance(prompt, str):
        if not prompt:
            return EncodedPrompt((_beginning(engine, tokenizer),), (0,), "")
        ids, starts = _encoded("prompt", tokenizer.encode, prompt, effort)
        if not ids:
            raise InvalidRequest("prompt", f"prompt: {shown(prompt)} encodes to no tokens with this model's tokenizer")
        _check_ids("prompt", ids, engine.vocab_size, tokenizer)
        return EncodedPrompt(ids, starts, prompt)
    _check_ids("prompt", prompt, engine.vocab_size, tokenizer)
    decoder, text, offsets = Decoder(), "", []
    for piece in tokenizer.prompt_pieces(prompt):
        offsets.append(len(text))
        text += decoder.push(piece)
    return EncodedPrompt(prompt, tuple(offsets), text + decoder.flush())


def _check_ids(param: str, ids: Sequence[int], vocab_size: int, tokenizer: Tokenizer) -> None:
    """The model has no row for an id of V or more, and a tokenizer may have such added tokens."""
    for v in ids:
        if v >= vocab_size:
            literal = f" ({shown(tokenizer.beyond[v])})" if v in tokenizer.beyond else ""
            raise InvalidRequest(
                param, f"{param}: {v}{literal} is no token id of this model; ids are below {vocab_size}"
            )


def _beginning(engine: Engine, tokenizer: Tokenizer) -> int:
    """What stands for "as from the beginning of a document"."""
    for v in (tokenizer.bos_id, tokenizer.end_of_text_id, *sorted(engine.eos_ids)):
        if v is not None:
            return v
    raise InvalidRequest("prompt", "prompt: this model has no end-of-text token to begin from; give a text")


class InfillEncoder:
    """Section 9: a BOS if there is one, then the markers and both texts in the model's order. The texts are encoded
    literally; of all tokens only the prompt's own have a span. The suffix is encoded once, whatever the prompts."""

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer, effort: Effort = TO_ITS_END) -> None:
        if tokenizer.infill is None:
            raise InvalidRequest("suffix", f"suffix: {tokenizer.infill_note}; leave it out")
        if not all(isinstance(prompt, str) for prompt in request.prompts):
            raise InvalidRequest("suffix", "suffix: only with prompts that are strings")
        if request.echo:
            raise InvalidRequest("suffix", "suffix: not together with echo")
        self._text, self._tokenizer, self._effort = request.suffix, tokenizer, effort
        self._parts = tokenizer.infill.parts
        self.least = tokenizer.least_tokens(request.suffix)

    @cached_property
    def _after(self) -> Encoding:
        return self._checked("suffix", self._tokenizer.encode_following, self._text)

    def infill(self, prompt: Prompt) -> EncodedPrompt:
        assert isinstance(prompt, str)
        before = self._checked("prompt", self._tokenizer.encode_literal, prompt)
        after = self._after
        ids = [] if self._tokenizer.bos_id is None else [self._tokenizer.bos_id]
        starts, at = [0] * len(ids), 0
        for part in self._parts:
            if isinstance(part, int):
                ids.append(part)
                starts.append(at)
            elif part == "prompt":
                ids += before.ids
                starts += before.starts
                at = len(prompt)
            else:
                ids += after.ids
                starts += [at] * len(after.ids)
        return EncodedPrompt(tuple(ids), tuple(starts), prompt)

    def _checked(self, field: str, encode: Callable[[str, Effort], Encoding], text: str) -> Encoding:
        encoding = _encoded(field, encode, text, self._effort)
        _check_ids(field, encoding.ids, self._tokenizer.vocab_size, self._tokenizer)
        # some vocabularies hold the literals of special tokens as ordinary pieces too
        if not self._tokenizer.special.keys().isdisjoint(encoding.ids):
            raise InvalidRequest(
                "suffix", "suffix: this tokenizer cannot read the literals of special tokens as plain text"
            )
        return encoding


def _encoded(field: str, encode: Callable[[str, Effort], Encoding], text: str, effort: Effort) -> Encoding:
    try:
        return encode(text, effort)
    except UnknownText as error:
        raise InvalidRequest(
            field, f"{field}: {shown(text)} has characters that this model's tokenizer has no token for ({error})"
        ) from None
    except TokenizerFailed as error:
        raise InvalidRequest(field, f"{field}: this model's tokenizer fails on {shown(text)} ({error})") from None
