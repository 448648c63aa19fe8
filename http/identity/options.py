"""Whether the options of authentication make sense together, before anything is served.

Each error is one line that begins with the option's flag. An option of another mode is refused, not ignored: whoever
set it believes that it protects something. Neither a key nor a part of one is ever shown.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import selectors
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import httpx

from gnomon.http.identity.jwks import ALGORITHMS
from gnomon.http.process.certificate import BadFile, check_authorities, check_pair
from gnomon.http.settings import AuthMode, AuthSettings
from gnomon.reference.system.files import read_regular
from gnomon.reference.system.options import named, options

ASKING = frozenset({AuthMode.exchange, AuthMode.userinfo, AuthMode.jwks})
KEYED = frozenset({AuthMode.exchange, AuthMode.jwks})  # signatures are verified here
ACCOUNTS = frozenset({AuthMode.exchange, AuthMode.userinfo})
READING = ASKING | {AuthMode.api_key}
ALWAYS = frozenset(AuthMode)

MODES = {
    "mode": ALWAYS,
    "allow_none_anywhere": frozenset({AuthMode.none}),
    "open_probes": ALWAYS,
    "open_metrics": ALWAYS,
    "api_keys": frozenset({AuthMode.api_key}),
    "api_key_file": frozenset({AuthMode.api_key}),
    "issuer": ASKING,
    "audience": KEYED,
    "token_url": frozenset({AuthMode.exchange}),
    "userinfo_url": frozenset({AuthMode.userinfo}),
    "jwks_url": KEYED,
    "algorithms": KEYED,
    "jws_types": frozenset({AuthMode.jwks}),
    "leeway_seconds": KEYED,
    "cache_seconds": ASKING,
    "negative_seconds": ASKING,
    "cache_size": ASKING,
    "jwks_seconds": KEYED,
    "jwks_cooldown_seconds": KEYED,
    "jwks_stale_seconds": KEYED,
    "http_seconds": ASKING,
    "max_parallel": ASKING,
    "ca_file": ASKING,
    "client_certificate": ASKING,
    "client_key": ASKING,
    "max_token_bytes": READING,
    "account_types": ACCOUNTS,
    "organizations": ACCOUNTS,
    "required_acl": ACCOUNTS,
    "require_authz": frozenset({AuthMode.userinfo}),
    "allow_http_issuer": ASKING,
}
"""In which modes an option means anything."""

SHORTEST_KEY = 16  # characters
MOST_KEY_BYTES = 16 * 2**20  # of a file of keys
PIPE_SECONDS = 10.0  # for a pipe of keys to be written to its end
VISIBLE = re.compile(r"[\x21-\x7e]+")  # what can be one word of a header
COMMENT = re.compile(r"(?:^|[ \t])#.*")
TYPES = ("user", "service")  # never "system": services are bound to a certificate that nobody checks here


class ConfigError(ValueError):
    """The server cannot be started like this: one line, for the operator."""


def flag(name: str) -> str:
    """How the operator gives the option; a secret has a variable only."""
    return named(options(AuthSettings, "auth_"), f"auth_{name}").said


def refuse(name: str, why: str) -> NoReturn:
    raise ConfigError(f"{flag(name)}: {why}")


def check_settings(settings: AuthSettings) -> None:
    """Everything that can be said without opening a file."""
    if settings.mode is None:
        refuse("mode", f"choose one of {', '.join(AuthMode)}")
    check_belonging(settings, settings.mode)
    check_ranges(settings)
    if settings.mode in ASKING:
        check_urls(settings)
    if settings.mode in KEYED:
        check_signatures(settings)
    if settings.mode in ACCOUNTS:
        check_accounts(settings)
    if (settings.client_certificate is None) != (settings.client_key is None):
        refuse("client_certificate", f"give it and {flag('client_key')}, or neither")


def check_belonging(settings: AuthSettings, mode: AuthMode) -> None:
    for row in fields(settings):
        if getattr(settings, row.name) != row.default and mode not in MODES[row.name]:
            where = " and ".join(one for one in AuthMode if one in MODES[row.name])
            refuse(
                row.name, f"means nothing with {flag('mode')} {mode}; it is for {where}: choose that, or leave it out"
            )


def check_ranges(settings: AuthSettings) -> None:
    for row in options(AuthSettings):
        value: Any = getattr(settings, row.name)
        if row.min is not None and value is not None and value < row.min:
            refuse(row.name, f"{value} is not allowed; at least {row.min}")
        if row.max is not None and value is not None and value > row.max:
            refuse(row.name, f"{value} is not allowed; at most {row.max}")


def check_urls(settings: AuthSettings) -> None:
    if not settings.issuer:
        refuse("issuer", f"{flag('mode')} {settings.mode} needs it")
    for name in ("issuer", "token_url", "userinfo_url", "jwks_url"):
        url = getattr(settings, name)
        if url is not None:
            check_url(name, url, settings.allow_http_issuer)


def check_url(name: str, url: str, allow_http: bool) -> None:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        refuse(name, f"{url!r} is not a URL")
    schemes = ("https", "http") if allow_http else ("https",)
    if parts.scheme not in schemes or not parts.host:
        refuse(name, f"{url!r} is not allowed; it must begin with {' or '.join(one + '://' for one in schemes)}")
    if parts.userinfo or "?" in url or "#" in url:
        refuse(name, "a URL with a user, a query or a fragment is not allowed")


def check_signatures(settings: AuthSettings) -> None:
    if not settings.audience:
        refuse("audience", f"{flag('mode')} {settings.mode} needs it")
    forbidden = [one for one in settings.algorithms if one not in ALGORITHMS]
    if forbidden or not settings.algorithms:
        sent = ", ".join(forbidden) or "none at all"
        refuse("algorithms", f"{sent} is not allowed; choose among {', '.join(sorted(ALGORITHMS))}")
    if not settings.jws_types or not all(settings.jws_types):
        refuse("jws_types", "name at least one type, and no empty one")
    if settings.jwks_seconds < settings.jwks_cooldown_seconds:
        refuse("jwks_seconds", f"must not be less than {flag('jwks_cooldown_seconds')}")


def check_accounts(settings: AuthSettings) -> None:
    if not settings.account_types or not set(settings.account_types) <= set(TYPES):
        sent = ", ".join(settings.account_types) or "none at all"
        refuse("account_types", f"{sent} is not allowed; choose among {', '.join(TYPES)}")
    if not all(settings.organizations):
        refuse("organizations", "an organization has a name")
    if settings.required_acl is not None and not re.fullmatch(
        r"[!-~]+:(create|read|update|delete)", settings.required_acl
    ):
        refuse("required_acl", "must be name:operation, the operation create, read, update or delete")


def api_keys(settings: AuthSettings) -> tuple[str, ...]:
    """The keys of mode api-key, from the one place that was named."""
    if settings.api_key_file is not None and settings.api_keys:
        refuse("api_keys", f"give it or {flag('api_key_file')}, not both")
    if settings.api_key_file is None:
        if not settings.api_keys:
            refuse("api_keys", f"{flag('mode')} {AuthMode.api_key} needs it, or {flag('api_key_file')}")
        named = [(f"key {number}", key) for number, key in enumerate(settings.api_keys, 1)]
        option = "api_keys"
    else:
        named = keys_in_file(settings)
        option = "api_key_file"
    for where, key in named:
        if not VISIBLE.fullmatch(key):
            refuse(option, f"{where} has characters that a header cannot carry; use visible ASCII without spaces")
        if not SHORTEST_KEY <= len(key) <= settings.max_token_bytes:
            allowed = f"{SHORTEST_KEY} to {settings.max_token_bytes} are allowed: openssl rand -hex 32 makes one"
            refuse(option, f"{where} has {len(key)} characters; {allowed}")
    return tuple(key for _, key in named)


def read_keys(path: Path) -> bytes:
    """All that is in a file, or in a pipe, such as a shell's <(...). Raises OSError. A pipe that nobody writes to is
    waited for, though not for ever; a device is refused."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return read_regular(path, MOST_KEY_BYTES)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return b"".join(_pieces(descriptor))
    finally:
        os.close(descriptor)


def _pieces(descriptor: int) -> Iterator[bytes]:
    end, size = time.monotonic() + PIPE_SECONDS, 0
    with selectors.DefaultSelector() as ready:
        ready.register(descriptor, selectors.EVENT_READ)
        while ready.select(max(0.0, end - time.monotonic())):
            piece = os.read(descriptor, 2**16)
            size += len(piece)
            if size > MOST_KEY_BYTES:
                raise OSError(errno.EFBIG, f"larger than {MOST_KEY_BYTES:,} bytes")
            if not piece:
                return
            yield piece
    raise OSError(errno.ETIMEDOUT, f"a pipe that was not written to its end in {PIPE_SECONDS:g} seconds")


def keys_in_file(settings: AuthSettings) -> list[tuple[str, str]]:
    """The keys and the lines where they stand. A comment begins with # at a line's start or after a space."""
    path = settings.api_key_file
    assert path is not None
    try:
        data = read_keys(path)
        text = data.decode("utf-8-sig")  # a byte order mark, as some editors write it, is no part of the first key
    except OSError as error:
        refuse("api_key_file", f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        refuse("api_key_file", f"{path}: {'UTF-16; save it as' if utf16 else 'not'} UTF-8")
    if "\0" in text:
        refuse("api_key_file", f"{path}: has a zero byte, as UTF-16 does; save it as UTF-8")
    lines = re.split("\r?\n|\r", text)  # and at nothing else: no key becomes two
    keys = [COMMENT.sub("", line).strip(" \t") for line in lines]
    named = [(f"{path}: line {number}", key) for number, key in enumerate(keys, 1) if key]
    if not named:
        refuse("api_key_file", f"{path}: holds no key")
    return named


def tls_context(settings: AuthSettings) -> ssl.SSLContext:
    """Whom we believe to be the identity service, and who we are to it."""
    if settings.ca_file is None:
        context = httpx.create_ssl_context(trust_env=False)
    else:
        try:
            check_authorities(flag("ca_file"), settings.ca_file)
            context = ssl.create_default_context(cafile=settings.ca_file)
        except BadFile as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            refuse("ca_file", f"{settings.ca_file}: {error.strerror or error}")
    if settings.client_certificate is not None and settings.client_key is not None:
        try:
            check_pair(flag("client_certificate"), settings.client_certificate, flag("client_key"), settings.client_key)
        except BadFile as error:
            raise ConfigError(str(error)) from None
        context.load_cert_chain(settings.client_certificate, settings.client_key, password=lambda: "")
    return context
