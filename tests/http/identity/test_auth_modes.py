"""How authentication is chosen, what cannot be meant, the modes that ask nobody, and whom the policy lets in."""

from __future__ import annotations

import hmac
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from gnomon.http.auth import authenticator
from gnomon.http.identity.jwks import ALGORITHMS
from gnomon.http.identity.options import MODES, SHORTEST_KEY, ConfigError, api_keys, flag
from gnomon.http.settings import AuthMode, AuthSettings
from gnomon.reference.system.options import options
from helpers.auth_app import AUDIENCE, CHALLENGES, auth_app, settings_for
from helpers.identity import FakeIdentity, FakeTime
from helpers.loopback import answer, hang

KEYS = ("first-key-of-ours-0001", "second-key-of-ours-0002", "third/key+with=all~of-!$it")
ISSUER = "https://identity.example"


def given(mode: AuthMode, **more: Any) -> AuthSettings:
    """The least that a mode needs."""
    least: dict[AuthMode, dict[str, Any]] = {
        AuthMode.exchange: {"issuer": ISSUER, "audience": AUDIENCE},
        AuthMode.userinfo: {"issuer": ISSUER},
        AuthMode.jwks: {"issuer": ISSUER, "audience": AUDIENCE},
        AuthMode.api_key: {"api_keys": KEYS},
        AuthMode.none: {},
    }
    return replace(AuthSettings(mode=mode), **(least[mode] | more))


def refusal(settings: AuthSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        authenticator(settings)
    message = str(caught.value)
    assert message.startswith(("--auth-", "GNOMON_AUTH_API_KEYS: "))
    assert "\n" not in message
    assert caught.value.__cause__ is None
    return message


# ---- options


@pytest.mark.parametrize("mode", AuthMode)
def test_the_least_that_a_mode_needs_is_enough(mode: AuthMode) -> None:
    assert authenticator(given(mode)) is not None


ASKING = [AuthMode.exchange, AuthMode.userinfo, AuthMode.jwks]

WRONG: dict[str, tuple[AuthSettings, str]] = {
    "no mode": (AuthSettings(), "--auth-mode: choose one of exchange, userinfo, jwks, api-key, none"),
    "an empty issuer": (given(AuthMode.jwks, issuer=""), "--auth-issuer: --auth-mode jwks needs it"),
    "an issuer by http": (given(AuthMode.jwks, issuer="http://i.example"), "--auth-issuer: 'http://i.example' is not"),
    "an issuer without a scheme": (given(AuthMode.jwks, issuer="i.example"), "--auth-issuer: 'i.example' is not"),
    "an issuer without a host": (given(AuthMode.jwks, issuer="https://"), "--auth-issuer: 'https://' is not"),
    "an issuer that is a file": (given(AuthMode.jwks, issuer="file:///a"), "--auth-issuer: 'file:///a' is not"),
    "an issuer that is no URL": (given(AuthMode.jwks, issuer="https://[::1"), "--auth-issuer: 'https://[::1' is not"),
    "an issuer with a user": (given(AuthMode.jwks, issuer="https://a:b@i.example"), "--auth-issuer: a URL with a user"),
    "an issuer with a query": (given(AuthMode.jwks, issuer=ISSUER + "?a=b"), "--auth-issuer: a URL with a user"),
    "an issuer with a fragment": (given(AuthMode.jwks, issuer=ISSUER + "#a"), "--auth-issuer: a URL with a user"),
    "a token URL by http": (given(AuthMode.exchange, token_url="http://i.example/t"), "--auth-token-url: 'http://"),
    "a userinfo URL by http": (given(AuthMode.userinfo, userinfo_url="http://i/u"), "--auth-userinfo-url: 'http://"),
    "a key set by http": (given(AuthMode.jwks, jwks_url="http://i.example/k"), "--auth-jwks-url: 'http://"),
    "no key": (given(AuthMode.api_key, api_keys=()), "GNOMON_AUTH_API_KEYS: --auth-mode api-key needs it, or"),
    "keys and a file": (given(AuthMode.api_key, api_key_file=Path("k")), "GNOMON_AUTH_API_KEYS: give it or"),
    "a short key": (given(AuthMode.api_key, api_keys=("k" * 16, "k" * 15)), "GNOMON_AUTH_API_KEYS: key 2 has 15"),
    "a long key": (given(AuthMode.api_key, api_keys=("k" * 8193,)), "GNOMON_AUTH_API_KEYS: key 1 has 8193 characters"),
    "an empty key": (given(AuthMode.api_key, api_keys=("",)), "GNOMON_AUTH_API_KEYS: key 1 has characters"),
    "a key with a space": (
        given(AuthMode.api_key, api_keys=("k" * 16 + " k",)),
        "GNOMON_AUTH_API_KEYS: key 1 has characters",
    ),
    "a key with a line end": (given(AuthMode.api_key, api_keys=("k" * 16 + "\n",)), "GNOMON_AUTH_API_KEYS: key 1 has"),
    "a key with NUL": (given(AuthMode.api_key, api_keys=("k" * 16 + "\0",)), "GNOMON_AUTH_API_KEYS: key 1 has"),
    "a key beyond ASCII": (
        given(AuthMode.api_key, api_keys=("k" * 16 + "é",)),
        "GNOMON_AUTH_API_KEYS: key 1 has characters",
    ),
    "a file that is not there": (
        given(AuthMode.api_key, api_keys=(), api_key_file=Path("/nowhere/keys")),
        "--auth-api-key-file: /nowhere/keys: No such file or directory",
    ),
    "a file that is a folder": (
        given(AuthMode.api_key, api_keys=(), api_key_file=Path("/")),
        "--auth-api-key-file: /: Is a directory",
    ),
    "a certificate that is not there": (
        given(AuthMode.jwks, ca_file=Path("/nowhere/ca")),
        "--auth-ca-file: /nowhere/ca",
    ),
    "certificates that are none": (given(AuthMode.jwks, ca_file=Path(__file__)), "--auth-ca-file: "),
    "a certificate without its key": (
        given(AuthMode.jwks, client_certificate=Path("c")),
        "--auth-client-certificate: give it and --auth-client-key, or neither",
    ),
    "a key without its certificate": (
        given(AuthMode.jwks, client_key=Path("k")),
        "--auth-client-certificate: give it and --auth-client-key, or neither",
    ),
    "a client certificate that is none": (
        given(AuthMode.jwks, client_certificate=Path(__file__), client_key=Path(__file__)),
        "--auth-client-certificate: ",
    ),
    "no account types": (
        given(AuthMode.userinfo, account_types=()),
        "--auth-account-types: none at all is not allowed",
    ),
    "the account type system": (
        given(AuthMode.exchange, account_types=("user", "system")),
        "--auth-account-types: user, system is not allowed; choose among user, service",
    ),
    "an empty organization": (given(AuthMode.userinfo, organizations=("",)), "--auth-organizations: "),
    "a right without an operation": (
        given(AuthMode.userinfo, required_acl="inference"),
        "--auth-required-acl: must be",
    ),
    "a right without a name": (given(AuthMode.userinfo, required_acl=":read"), "--auth-required-acl: must be"),
    "a right with a strange operation": (given(AuthMode.userinfo, required_acl="a:b"), "--auth-required-acl: must be"),
    "no types": (given(AuthMode.jwks, jws_types=()), "--auth-jws-types: name at least one"),
    "an empty type": (given(AuthMode.jwks, jws_types=("",)), "--auth-jws-types: name at least one"),
    "no algorithms": (given(AuthMode.jwks, algorithms=()), "--auth-algorithms: none at all is not allowed"),
    "a TTL within the cooldown": (given(AuthMode.jwks, jwks_seconds=29), "--auth-jwks-seconds: must not be less than"),
    "a cache beyond its most": (
        given(AuthMode.userinfo, cache_seconds=301),
        "--auth-cache-seconds: 301 is not allowed",
    ),
    "a leeway below zero": (given(AuthMode.jwks, leeway_seconds=-1), "--auth-leeway-seconds: -1 is not allowed"),
    "no time at all": (given(AuthMode.jwks, http_seconds=0), "--auth-http-seconds: 0 is not allowed; at least 0.1"),
} | {
    f"no {name} for {mode}": (given(mode, **{name: None}), f"--auth-{name}: --auth-mode {mode} needs it")
    for mode in ASKING
    for name in ("issuer", "audience")
    if (mode, name) != (AuthMode.userinfo, "audience")
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_one_line_that_names_the_option(name: str) -> None:
    settings, expected = WRONG[name]
    assert refusal(settings).startswith(expected)


@pytest.mark.parametrize("mode", [AuthMode.exchange, AuthMode.jwks])
@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "NONE", "HS256", "HS384", "HS512", "hs512", "", "ES512 ", "es512", "A256GCMKW", "dir", "ES", "*"],
)
def test_no_setting_allows_an_algorithm_without_a_public_key(mode: AuthMode, algorithm: str) -> None:
    assert refusal(given(mode, algorithms=("ES512", algorithm))).startswith("--auth-algorithms: ")


def test_the_algorithms_that_can_be_allowed_are_all_asymmetric() -> None:
    assert all(name[:2] in ("ES", "RS", "PS", "Ed") for name in ALGORITHMS)
    assert authenticator(given(AuthMode.jwks, algorithms=tuple(ALGORITHMS))) is not None


OTHERS: dict[str, Any] = {
    "allow_none_anywhere": True,
    "open_probes": True,
    "open_metrics": True,
    "api_keys": KEYS,
    "api_key_file": Path("file"),
    "issuer": ISSUER,
    "audience": AUDIENCE,
    "token_url": ISSUER,
    "userinfo_url": ISSUER,
    "jwks_url": ISSUER,
    "algorithms": ("ES256",),
    "jws_types": ("JWT",),
    "leeway_seconds": 1,
    "cache_seconds": 1,
    "negative_seconds": 1,
    "cache_size": 1,
    "jwks_seconds": 301,
    "jwks_cooldown_seconds": 1,
    "jwks_stale_seconds": 1,
    "http_seconds": 1.0,
    "max_parallel": 1,
    "ca_file": Path("file"),
    "client_certificate": Path("file"),
    "client_key": Path("file"),
    "max_token_bytes": 100,
    "account_types": ("user",),
    "organizations": ("org-1",),
    "required_acl": "inference:read",
    "require_authz": False,
    "allow_http_issuer": True,
}
"""Another value than the default, for every option but the mode."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", AuthMode)
@pytest.mark.parametrize("name", OTHERS)
def test_an_option_of_another_mode_is_refused_by_name(name: str, mode: AuthMode) -> None:
    settings = given(mode, **{name: OTHERS[name]})
    foreign = f"{flag(name)}: means nothing with --auth-mode {mode}; it is for "
    if mode not in MODES[name]:
        assert refusal(settings).startswith(foreign)
    elif isinstance(OTHERS[name], Path):
        assert not refusal(settings).startswith(foreign)  # there is no such file
    else:
        assert authenticator(settings) is not None


def test_the_table_of_modes_knows_every_option() -> None:
    assert list(MODES) == ["mode", *OTHERS] == [field.name for field in fields(AuthSettings)]


def test_an_http_issuer_needs_its_own_option() -> None:
    assert authenticator(given(AuthMode.jwks, issuer="http://127.0.0.1:1", allow_http_issuer=True)) is not None


@pytest.mark.parametrize("settings", [given(AuthMode.api_key), given(AuthMode.api_key, api_keys=(KEYS[0] + "\0",))])
def test_no_repr_and_no_error_shows_a_key(settings: AuthSettings) -> None:
    try:
        said = repr(vars(authenticator(settings)))
    except ConfigError as error:
        said = repr(error)
    assert not [key for key in KEYS if key in said + repr(settings)]


# ---- api-key


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_and_has_a_name_of_its_own(key: str) -> None:
    with auth_app(given(AuthMode.api_key)) as at:
        assert at.authenticator.ready
        caller = at.show(key).json()
        assert caller["subject"] == f"key {caller['digest']}"
        assert at.records[-1].caller == caller["digest"]


@pytest.mark.parametrize(
    "key",
    [
        KEYS[0][:-1],
        KEYS[0] + "x",
        KEYS[0].upper(),
        KEYS[0][::-1],
        KEYS[0] + KEYS[1],
        "none",
        "null",
        "undefined",
        "*",
        "%",
        "' OR 1=1"[:4],
    ],
)
def test_what_resembles_a_key_opens_nothing(key: str) -> None:
    with auth_app(given(AuthMode.api_key)) as at:
        assert at.outcome(key) == "invalid"


def test_every_key_is_compared_by_its_digest_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    sound = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return sound(one, other)

    monkeypatch.setattr("gnomon.http.auth.hmac.compare_digest", counted)
    with auth_app(given(AuthMode.api_key)) as at:
        for key in (*KEYS, "another-key-entirely", "x"):
            compared.clear()
            at.show(key)
            assert compared == [(32, 32)] * len(KEYS)


def test_keys_are_read_from_a_file_with_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        f"# ours\n\n{KEYS[0]}\n  {KEYS[1]}  # of Ada\n\tkey#with-a-hash-0000\n#{KEYS[2]}\n", encoding="utf-8"
    )
    with auth_app(given(AuthMode.api_key, api_keys=(), api_key_file=file)) as at:
        assert [at.outcome(key) for key in (KEYS[0], KEYS[1], "key#with-a-hash-0000")] == ["accepted"] * 3
        assert [at.outcome(key) for key in (KEYS[2], "#", "Ada", "#" + KEYS[2])] == ["invalid"] * 4


def test_the_help_says_how_long_a_key_must_be_and_the_refusal_how_to_make_one() -> None:
    helps = {row.name: row.help for row in options(AuthSettings)}
    for name in ("api_keys", "api_key_file"):
        assert f"each of {SHORTEST_KEY} or more visible ASCII characters" in helps[name]
    allowed = f"has 15 characters; {SHORTEST_KEY} to 8192 are allowed: openssl rand -hex 32 makes one"
    assert refusal(given(AuthMode.api_key, api_keys=("k" * 15,))).endswith(allowed)
    assert authenticator(given(AuthMode.api_key, api_keys=("k" * 16,))).ready


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"\xff", "not UTF-8"),
        ("first-key-of-ours-0001\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("first-key-of-ours-0001\n".encode("utf-16-be"), "has a zero byte, as UTF-16 does; save it as UTF-8"),
        (b"first-key-of-ours-0001\nshort\n", "line 2 has 5 characters"),
        (b"first-key-of-ours-0001\ntwo words-of-0001\n", "line 2 has characters that a header cannot carry"),
        (
            "first-key-of-ours-0001\u2028second-key-of-ours-0002\n".encode(),
            "line 1 has characters that a header cannot",
        ),
        ("first-key-of-ours-0001\xa0\n".encode(), "line 1 has characters that a header cannot carry"),
        ("first-key-of-ours-0001\nschlüssel-von-uns\n".encode(), "line 2 has characters that a header cannot carry"),
    ],
)
def test_a_file_without_sound_keys_is_refused_by_its_line_and_shows_none(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    message = refusal(given(AuthMode.api_key, api_keys=(), api_key_file=file))
    assert message.startswith(f"--auth-api-key-file: {file}: {expected}")
    assert "first-key" not in message
    assert "two words" not in message


# ---- none


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer sk-anything",),
        ("Basic eDp5",),
        ("Bearer a", "Bearer b"),
        ("nonsense é",),
        ("B" * 10**6,),
    ],
)
def test_mode_none_lets_everybody_in_whatever_the_header_says(values: tuple[str, ...]) -> None:
    with auth_app(given(AuthMode.none)) as at:
        assert at.authenticator.ready
        response = at.call(*values)
        assert at.checked(response) == "off"
        assert response.json()["subject"] == "anyone"
        assert at.records[-1].caller is None


# ---- modes do not fall back on one another


def test_a_mode_that_cannot_ask_lets_nobody_in_by_another(identity: FakeIdentity, time: FakeTime) -> None:
    signed = identity.sign(
        {"iss": identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": identity.now, "exp": identity.now + 60},
        typ="at+jwt",
    )
    for mode in (AuthMode.exchange, AuthMode.userinfo):
        with auth_app(settings_for(identity, mode), time) as at:
            assert at.outcome(signed) == "invalid"  # the service knows no such token
            identity.instead = dict.fromkeys(("token", "userinfo", "jwks"), answer(b"", 500))
            assert at.outcome(identity.service_token()) == "unavailable"
            identity.instead = {}


# ---- policy


@pytest.mark.parametrize("mode", [AuthMode.exchange, AuthMode.userinfo])
def test_account_types_and_organizations_decide_who_comes_in(
    mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    service, user = identity.service_token("sa-1", "org-1"), identity.user_token("ada@example.org", "org-1", "org-2")
    nobody, system = identity.user_token("bob@example.org"), identity.system_token()
    for more, expected in (
        ({}, ("accepted", "accepted", "forbidden", "forbidden")),
        ({"account_types": ("user",)}, ("forbidden", "accepted", "forbidden", "forbidden")),
        ({"account_types": ("service",)}, ("accepted", "forbidden", "forbidden", "forbidden")),
        ({"organizations": ("org-2", "org-3")}, ("forbidden", "accepted", "forbidden", "forbidden")),
        ({"organizations": ("ORG-1", "org-", "org-11")}, ("forbidden", "forbidden", "forbidden", "forbidden")),
    ):
        with auth_app(settings_for(identity, mode, **more), time) as at:
            assert tuple(map(at.outcome, (service, user, nobody, system))) == expected
            if more == {"organizations": ("org-2", "org-3")}:
                assert at.authenticate(user).organizations == ("org-2",)


def rights(name: str, *operations: str) -> list[dict[str, Any]]:
    return [{"name": "identity:users", "operations": ["read"]}, {"name": name, "operations": list(operations)}]


RIGHT = "infaas:completions:create"
HELD, NOT_HELD = rights("infaas:completions", "read", "create"), rights("infaas:completions", "read")

ACLS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "nowhere": ([], {}, "forbidden"),
    "globally": (HELD, {}, "accepted"),
    "globally, another operation": (NOT_HELD, {}, "forbidden"),
    "globally, a longer name": (rights("infaas:completions:more", "create"), {}, "forbidden"),
    "globally, a shorter name": (rights("infaas", "create", "completions:create"), {}, "forbidden"),
    "in the organization": ([], {"org-2": {"endpoints": HELD}}, "accepted"),
    "in the organization, another operation": ([], {"org-2": {"endpoints": NOT_HELD}}, "forbidden"),
    "in a project of it": ([], {"org-2": {"projects": [{"id": "p"}, {"id": "q", "endpoints": HELD}]}}, "accepted"),
    "in a project, another operation": ([], {"org-2": {"projects": [{"id": "q", "endpoints": NOT_HELD}]}}, "forbidden"),
    "in an organization that is not the caller's": ([], {"org-3": {"endpoints": HELD}}, "forbidden"),
    "in an answer about another organization": ([], {"org-2": {"id": "org-3", "endpoints": HELD}}, "forbidden"),
    "in the old form only": ([], {"org-2": {"endpoints": None, "organization": {"endpoints": HELD}}}, "forbidden"),
}


@pytest.mark.parametrize("mode", [AuthMode.exchange, AuthMode.userinfo])
@pytest.mark.parametrize("name", ACLS)
def test_a_required_right_is_looked_for_globally_then_in_organizations_then_in_projects(
    name: str, mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    identity.global_acl, identity.organization_acl, expected = ACLS[name]
    token = identity.user_token("ada@example.org", "org-1", "org-2")
    with auth_app(settings_for(identity, mode, required_acl=RIGHT), time) as at:
        assert at.outcome(token) == expected
        assert identity.calls["acl"] == (1 if name == "globally" else 3)
        assert at.outcome(token) == expected
        assert identity.calls["acl"] == (1 if name == "globally" else 3)  # it was remembered


BODIES = {
    "401": (answer(b"{}", 401), "invalid"),
    "403": (answer(b"{}", 403), "forbidden"),
    "404": (answer(b"{}", 404), "unavailable"),
    "500": (answer(b"{}", 500), "unavailable"),
    "HTML": (answer(b"<html>"), "unavailable"),
    "a list": (answer(b"[]"), "unavailable"),
    "global a string": (answer(b'{"global":"all"}'), "unavailable"),
    "global a list of strings": (answer(b'{"global":["infaas:completions"]}'), "unavailable"),
    "operations a string": (answer(b'{"global":[{"name":"infaas:completions","operations":"create"}]}'), "unavailable"),
    "operations missing": (answer(b'{"global":[{"name":"infaas:completions"}]}'), "unavailable"),
    "organizations an object": (answer(b'{"organizations":{"id":"org-1"}}'), "unavailable"),
    "a redirect": (answer(b"", 302, location="/evil"), "unavailable"),
}


@pytest.mark.parametrize("name", BODIES)
def test_an_acl_that_is_not_understood_lets_nobody_in(name: str, identity: FakeIdentity, time: FakeTime) -> None:
    identity.instead["acl"], expected = BODIES[name]
    with auth_app(settings_for(identity, AuthMode.userinfo, required_acl=RIGHT), time) as at:
        assert at.outcome(identity.service_token()) == expected
        assert "/evil" not in [seen.path for seen in identity.seen]


def test_rights_that_are_not_answered_in_time_let_nobody_in(identity: FakeIdentity, time: FakeTime) -> None:
    identity.instead["acl"] = hang
    with auth_app(settings_for(identity, AuthMode.userinfo, required_acl=RIGHT, http_seconds=0.3), time) as at:
        assert at.outcome(identity.service_token()) == "unavailable"


def test_an_organizations_name_cannot_lead_the_question_elsewhere(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.user_token("ada@example.org", "../../oauth2/v2", "a/b?c#d", "a b", "é")
    identity.organization_acl = {"a/b?c#d": {"endpoints": HELD}}
    with auth_app(settings_for(identity, AuthMode.userinfo, required_acl=RIGHT), time) as at:
        at.show(token)
    asked = [seen for seen in identity.seen if "acl" in seen.path or "oauth2/v2/acl" in seen.path]
    assert all(seen.path.startswith("/api/v1/") and seen.query == b"" for seen in asked)


# ---- what a client is told


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
def test_a_key_file_of_any_editor_is_read(ends: str, mark: bytes, tmp_path: Path) -> None:
    lines = ("first-key-of-ours-0001", "# a comment", "second-key-of-ours-02 # and one")
    file = tmp_path / "keys"
    file.write_bytes(mark + ends.join(lines).encode() + ends.encode())
    try:
        keys = api_keys(given(AuthMode.api_key, api_keys=(), api_key_file=file))
    except ConfigError as error:
        pytest.fail(str(error))
    assert keys == ("first-key-of-ours-0001", "second-key-of-ours-02")


def test_each_outcome_has_one_sentence_whatever_went_wrong(identity: FakeIdentity, time: FakeTime) -> None:
    said: dict[str, set[str]] = {word: set() for word in CHALLENGES}
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        for values in (
            (),
            ("Basic eDp5",),
            (f"Bearer {token} x",),
            ("Bearer a.b.c",),
            ("Bearer x",),
            ("Bearer a", "Bearer b"),
        ):
            response = at.call(*values)
            said[at.checked(response)].add(response.text)
        for shown in (identity.refresh_token(), identity.id_token(), identity.system_token(), "B" * 9000):
            response = at.show(shown)
            said[at.checked(response)].add(response.text)
        response = at.show(identity.user_token("bob@example.org"))
        said[at.checked(response)].add(response.text)
        for code in (500, 404):
            identity.instead["userinfo"] = answer(b"<html>", code)
            response = at.show(identity.service_token("sa-2"))
            said[at.checked(response)].add(response.text)
    assert {word: len(texts) for word, texts in said.items()} == dict.fromkeys(CHALLENGES, 1)
