"""Tokens that stand outside tokenizer.json: merged into it as transformers 5 merges them.

    tokenizer_config.json    added_tokens_decoder (id → token); bos_token, eos_token and every other *_token;
                             extra_special_tokens or additional_special_tokens
    special_tokens_map.json  the same names and lists, before those of tokenizer_config.json
    added_tokens.json        token → id

The last two are older: where there is an added_tokens_decoder, nobody reads them. A token has the flags (special,
lstrip, …) that stand outside, the id that tokenizer.json has for it, else the next free one. A file that states another
id is refused: one of the two is not what the model was trained with.

What differs from transformers: a pad_token that is an ordinary token of the vocabulary stays one, as some files name
"!" there; a token of added_tokens.json is special wherever it is named so, in a list or by an object; eos_token and
bos_token are special whatever their flags say; and fill-in-the-middle tokens are not made: a name that is no token of
the vocabulary is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from gnomon.reference.body.shown import shown
from gnomon.reference.checkpoint.entries import Entries
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.tensors import read_json

CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
BY_ID, MODEL_SPECIFIC = "added_tokens_decoder", "model_specific_special_tokens"
EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NOT_MADE = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what special_tokens_map.json and added_tokens.json say besides, if they are read. The
    list of further special tokens is EXTRA, an object of named ones MODEL_SPECIFIC, whatever the files call them."""
    config = read_json(directory / CONFIG, missing={})
    if not config.get(EXTRA):
        config = {**config, EXTRA: config.get(OLD_EXTRA)} if OLD_EXTRA in config else config
    config = _with_names(config)
    if BY_ID in config:
        return config
    older = read_json(directory / SPECIAL_TOKENS, missing={})
    merged = {**config, **older, ADDED_TOKENS: read_json(directory / ADDED_TOKENS, missing={})}
    known = config.get(EXTRA) or []
    if isinstance(older.get(EXTRA), list):
        merged[EXTRA] = known + [token for token in older[EXTRA] if token not in known]
    elif EXTRA not in older:
        merged[EXTRA] = known if EXTRA in config else older.get(OLD_EXTRA)
    return _with_names(merged)


def _with_names(config: dict[str, Any]) -> dict[str, Any]:
    extra = config.get(EXTRA)
    if isinstance(extra, dict):
        config = {**config, MODEL_SPECIFIC: {**config.get(MODEL_SPECIFIC, {}), **extra}}
        del config[EXTRA]
    elif not isinstance(extra or [], list):
        raise CheckpointError(f"{EXTRA} is {shown(extra)}; a list of tokens, or an object, is expected")
    return config


def merge(spec: dict[str, Any], ids: Mapping[str, int], config: Entries) -> dict[str, int]:
    """Puts the tokens of the configuration among the added ones of a tokenizer.json. ids: its token → id, given back
    with the new ones. Raises CheckpointError."""
    own = {token["content"]: _added_token(token) for token in spec.get("added_tokens") or []}
    try:
        named, listed, stated = _named(config), _listed(config), _stated(config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{CONFIG}: {error}") from None
    new = {
        token.content: token
        for _, token in stated
        if token.content not in own or (BY_ID in config and repr(token) != repr(own[token.content]))
    }
    for name in new.keys() & {token.content for token in named.values()}:
        new[name].special = True
    known = {"", *own, *(token.content for _, token in stated)}
    for name, token in (*named.items(), *((EXTRA, token) for token in listed)):
        is_ordinary = name == "pad_token" and token.content in ids
        if token.content not in known and not is_ordinary:
            new[token.content] = token  # of two with one text the later decides, as with transformers
    now = {**_with_library(spec, list(new.values())), **ids} if new else dict(ids)
    for v, token in stated:
        if now[token.content] != v:
            raise CheckpointError(_contradiction(config, token.content, v, now, ids))
    return now


def _with_library(spec: dict[str, Any], new: list[AddedToken]) -> dict[str, int]:
    """Adds tokens as the library does, which finds their ids: that of the vocabulary's own entry, else the next."""
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_tokens(new)
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    spec["added_tokens"] = [
        {"id": v, "content": token.content, **{flag: getattr(token, flag) for flag in TOKEN_FLAGS}}
        for v, token in added
    ]
    return {token.content: v for v, token in added}


def _contradiction(config: Entries, name: str, v: int, now: Mapping[str, int], ids: Mapping[str, int]) -> str:
    source = f"{CONFIG}: {BY_ID}" if BY_ID in config else ADDED_TOKENS
    other = next((token for token, taken in ids.items() if taken == v), None)
    if name in ids:
        instead = f"it is {ids[name]}"
    elif other is not None:
        instead = f"{v} is {shown(other)}"
    else:
        instead = f"it has none, and the next free one is {now[name]}"
    return f"{source} says that {shown(name)} is id {v}; in tokenizer.json {instead}"


# ---- the tokens of the configuration


def _named(config: Entries) -> dict[str, AddedToken]:
    """Name → token, those of transformers first: the order in which ids are given to tokens that have none."""
    others = [name for name in config if name.endswith("_token") and name not in (*STANDARD, *NOT_MADE)]
    values = {name: config.get(name) for name in (*STANDARD, *others)} | config.get(MODEL_SPECIFIC, {})
    return {name: _added_token(value, True) for name, value in values.items() if isinstance(value, str | dict)}


def _listed(config: Entries) -> list[AddedToken]:
    return [_added_token(token, True) for token in config.get(EXTRA) or []]


def _stated(config: Entries) -> list[tuple[int, AddedToken]]:
    """The tokens whose ids the files state, by id."""
    if BY_ID not in config:
        special = {token.content for token in (*_named(config).values(), *_listed(config))}
        found = [(v, AddedToken(name, special=name in special)) for name, v in config[ADDED_TOKENS].items() if name]
        wrong = [v for v, _ in found if type(v) is not int]
        if wrong:
            raise CheckpointError(f"{ADDED_TOKENS}: {shown(wrong[0])} is no id")
    elif isinstance(config[BY_ID], dict):
        found = [(int(v), _added_token(token)) for v, token in config[BY_ID].items() if content(token)]
    else:
        raise CheckpointError(f"{CONFIG}: {BY_ID} is {shown(config[BY_ID])}; an object, id to token, is expected")
    return sorted(found, key=lambda item: item[0])


def _added_token(token: Any, special: bool = False) -> AddedToken:
    """A token of a JSON file, which is a string, or an object with flags."""
    flags = {flag: token[flag] for flag in TOKEN_FLAGS if flag in token} if isinstance(token, dict) else {}
    return AddedToken(content(token), **{**flags, "special": special or flags.get("special", False)})


def content(token: Any) -> str:
    """The text of a token of a JSON file."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
