"""What is remembered of a token, for how long, and how often the identity service is asked. Time stands still here.

No test waits for anything to expire: the clock is the test's own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine

import pytest

from gnomon.http.identity.token_cache import ExpiringCache, SharedCalls
from gnomon.http.settings import AuthMode
from helpers.auth_app import AUDIENCE, auth_app, settings_for
from helpers.forge import GONE
from helpers.identity import FakeIdentity, FakeTime
from helpers.loopback import answer, hang, slow, status

ENDPOINT = {AuthMode.exchange: "token", AuthMode.userinfo: "userinfo"}
ASKING = list(ENDPOINT)


@pytest.mark.parametrize("mode", ASKING)
def test_a_token_is_asked_about_once(mode: AuthMode, identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, mode), time) as at:
        first = at.show(token).json()
        time.now += 49
        assert at.show(token).json() == first
        assert identity.calls[ENDPOINT[mode]] == 1
        time.now += 1
        assert at.show(token).json() == first
        assert identity.calls[ENDPOINT[mode]] == 2


@pytest.mark.parametrize("mode", ASKING)
def test_fifty_who_show_one_token_at_once_are_one_question(
    mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, mode), time) as at:
        identity.instead[ENDPOINT[mode]] = slow(identity.router, 0.2)
        answers = at.together([token] * 50)
        assert [response.status_code for response in answers] == [200] * 50
        assert identity.calls[ENDPOINT[mode]] == 1
        assert {record.auth for record in at.records} == {"accepted"}


def test_fifty_who_show_one_bad_token_at_once_are_one_question(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.refresh_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        identity.instead["userinfo"] = slow(identity.router, 0.2)
        assert [response.status_code for response in at.together([token] * 50)] == [401] * 50
        assert identity.calls["userinfo"] == 1


@pytest.mark.parametrize("mode", ASKING)
def test_a_revoked_token_is_refused_as_soon_as_it_is_asked_about_again(
    mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    old = identity.service_token()
    with auth_app(settings_for(identity, mode), time) as at:
        assert at.outcome(old) == "accepted"
        new = identity.service_token()  # the account is the same
        time.now += 49
        assert at.outcome(old) == "accepted"
        assert at.outcome(new) == "accepted"
        time.now += 1
        assert at.outcome(old) == "invalid"
        assert at.outcome(new) == "accepted"


@pytest.mark.parametrize("mode", ASKING)
def test_a_user_who_is_deactivated_is_out_after_the_ttl(mode: AuthMode, identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.user_token("ada@example.org", "org-1")
    with auth_app(settings_for(identity, mode), time) as at:
        assert at.outcome(token) == "accepted"
        identity.users["ada@example.org"].active = False
        time.now += 50
        assert at.outcome(token) == "invalid"


@pytest.mark.parametrize("mode", ASKING)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_token_outlives_one_rotation_of_the_services_keys_and_not_two(
    mode: AuthMode, legacy: bool, identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token(legacy=legacy)
    with auth_app(settings_for(identity, mode), time) as at:
        for expected in ("accepted", "accepted", "invalid"):
            assert at.outcome(token) == expected
            identity.rotate()
            assert at.outcome(token) == expected  # what is remembered knows of no rotation
            time.now += 50


def test_a_passport_that_ends_soon_is_remembered_until_ten_seconds_before(
    identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token(lifetime=30)
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        for passed, calls, expected in (
            (0, 1, "accepted"),
            (19, 1, "accepted"),
            (1, 2, "accepted"),
            (9, 3, "accepted"),  # in the last ten seconds it is asked about every time
            (1, 4, "invalid"),
        ):
            time.now += passed
            assert at.outcome(token) == expected
            assert identity.calls["token"] == calls


def test_a_signed_token_is_not_remembered_past_its_end(identity: FakeIdentity, time: FakeTime) -> None:
    now = identity.now
    token = identity.sign(
        {"iss": identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 30}, typ="at+jwt"
    )
    with auth_app(settings_for(identity, AuthMode.jwks, leeway_seconds=0), time) as at:
        assert at.outcome(token) == "accepted"
        time.now += 29
        assert at.outcome(token) == "accepted"
        time.now += 1
        assert at.outcome(token) == "invalid"


def test_a_token_that_is_refused_is_asked_about_again_after_a_moment(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.user_token("ada@example.org", "org-1")
    identity.users["ada@example.org"].active = False
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(token) == "invalid"
        identity.users["ada@example.org"].active = True
        time.now += 4
        assert at.outcome(token) == "invalid"
        assert identity.calls["userinfo"] == 1
        time.now += 1
        assert at.outcome(token) == "accepted"


def test_a_caller_who_may_not_come_in_is_asked_about_again_after_a_moment(
    identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.user_token("ada@example.org")
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(token) == at.outcome(token) == "forbidden"
        assert identity.calls["userinfo"] == 1
        identity.users["ada@example.org"].organizations = ("org-1",)
        time.now += 5
        assert at.outcome(token) == "accepted"


def test_without_seconds_for_refusals_none_is_remembered(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.userinfo, negative_seconds=0), time) as at:
        for calls in (1, 2, 3):
            assert at.outcome("a." * 2 + "a") == "invalid"
            assert at.outcome(refresh := identity.refresh_token()) == "invalid"
            assert at.outcome(refresh) == "invalid"
            assert identity.calls["userinfo"] == 2 * calls


@pytest.mark.parametrize("code", [400, 404, 429, 500, 502, 503])
def test_no_answer_is_never_remembered(code: int, identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        identity.instead["userinfo"] = status(code)
        for calls in (1, 2, 3):
            assert at.outcome(token) == "unavailable"
            assert identity.calls["userinfo"] == calls
        assert len(at.tokens.accepted) == len(at.tokens.refused) == 0


def test_two_tokens_of_one_subject_are_two(identity: FakeIdentity, time: FakeTime) -> None:
    first = identity.user_token("ada@example.org", "org-1", client="cli")
    second = identity.user_token("ada@example.org", client="web")
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        digests = {at.show(token).json()["digest"] for token in (first, second)}
        assert len(digests) == 2
        assert identity.calls["userinfo"] == 2
        del identity.users["ada@example.org"].sessions["cli"]
        time.now += 50
        assert (at.outcome(first), at.outcome(second)) == ("invalid", "accepted")


def test_what_is_remembered_is_bounded_and_the_one_not_seen_for_longest_goes(
    identity: FakeIdentity, time: FakeTime
) -> None:
    with auth_app(settings_for(identity, AuthMode.userinfo, cache_size=3), time) as at:
        tokens = [identity.service_token(f"sa-{number}") for number in range(4)]
        for token in (*tokens[:3], tokens[0], tokens[3]):
            assert at.outcome(token) == "accepted"
        assert (len(at.tokens.accepted), identity.calls["userinfo"]) == (3, 4)
        assert at.outcome(tokens[0]) == "accepted"
        assert identity.calls["userinfo"] == 4
        assert at.outcome(tokens[1]) == "accepted"
        assert identity.calls["userinfo"] == 5


def test_a_flood_of_bad_tokens_does_not_drive_out_a_good_one(identity: FakeIdentity, time: FakeTime) -> None:
    good = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.userinfo, cache_size=5), time) as at:
        assert at.outcome(good) == "accepted"
        for _ in range(20):
            assert at.outcome(identity.refresh_token()) == "invalid"
        assert len(at.tokens.refused) == 5
        calls = identity.calls["userinfo"]
        assert at.outcome(good) == "accepted"
        assert identity.calls["userinfo"] == calls


def test_memory_is_keyed_by_the_digest_of_the_whole_token(identity: FakeIdentity, time: FakeTime) -> None:
    good, bad = identity.service_token(), identity.refresh_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        at.outcome(good)
        at.outcome(bad)
        assert list(at.tokens.accepted) == [hashlib.sha256(good.encode()).digest()]
        assert list(at.tokens.refused) == [hashlib.sha256(bad.encode()).digest()]
        assert at.outcome(good[:-1] + ("A" if good[-1] != "A" else "Q")) == "invalid"


@pytest.mark.parametrize("mode", ASKING)
def test_a_leader_who_leaves_does_not_take_the_others_along(
    mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token()

    with auth_app(settings_for(identity, mode), time) as at:
        identity.instead[ENDPOINT[mode]] = slow(identity.router, 0.2)

        async def scene() -> list[int]:
            leader = asyncio.create_task(at.send(f"Bearer {token}"))
            while not identity.calls[ENDPOINT[mode]]:
                await asyncio.sleep(0.001)
            followers = [asyncio.create_task(at.send(f"Bearer {token}")) for _ in range(5)]
            await asyncio.sleep(0.01)
            leader.cancel()
            followers[0].cancel()
            outcomes = await asyncio.gather(leader, *followers, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes[:2]] == [asyncio.CancelledError] * 2
            return [outcome.status_code for outcome in outcomes[2:] if not isinstance(outcome, BaseException)]

        assert at.run(scene()) == [200] * 4
        assert identity.calls[ENDPOINT[mode]] == 1


def test_a_question_whose_askers_have_all_left_is_still_answered(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        identity.instead["userinfo"] = slow(identity.router, 0.05)

        async def leave() -> None:
            asker = asyncio.create_task(at.send(f"Bearer {token}"))
            while not identity.calls["userinfo"]:
                await asyncio.sleep(0.001)
            asker.cancel()
            await asyncio.gather(asker, return_exceptions=True)

        at.run(leave())
        at.until(lambda: len(at.tokens.accepted) == 1)
        assert at.outcome(token) == "accepted"
        assert identity.calls["userinfo"] == 1


def test_a_server_that_stops_leaves_no_question_behind(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        identity.instead["userinfo"] = hang

        async def scene() -> None:
            asker = asyncio.create_task(at.send(f"Bearer {token}"))
            while not identity.calls["userinfo"]:
                await asyncio.sleep(0.001)
            asker.cancel()
            await asyncio.gather(asker, return_exceptions=True)
            assert len(asyncio.all_tasks()) == 2  # the question outlives the one who asked it
            await at.authenticator.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        at.run(scene())


def test_an_answer_about_one_token_is_never_given_for_another(identity: FakeIdentity, time: FakeTime) -> None:
    tokens = {f"sa-{number}": identity.service_token(f"sa-{number}") for number in range(20)}
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        for _ in range(2):
            answers = at.together(list(tokens.values()))
            assert [response.json()["subject"] for response in answers] == list(tokens)
        assert identity.calls["userinfo"] == 20


def test_a_passport_without_organization_is_not_remembered_as_good(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        identity.passport_changes = {"org_ids": GONE}
        assert at.outcome(token) == "forbidden"
        identity.passport_changes = {}
        time.now += 5
        assert at.outcome(token) == "accepted"


def test_a_service_that_says_401_by_mistake_is_forgiven_in_seconds(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        identity.instead["token"] = answer(b"{}", 401)
        assert at.outcome(token) == "invalid"
        del identity.instead["token"]
        time.now += 5
        assert at.outcome(token) == "accepted"


# ---- the two containers by themselves


def test_an_entry_ends_in_its_second_and_is_dropped(time: FakeTime) -> None:
    recall: ExpiringCache[str] = ExpiringCache(2, time.clock())
    recall.put(b"a", "A", 10)
    recall.put(b"b", "B", 0)
    recall.put(b"c", "C", -1)
    assert (recall.get(b"a"), recall.get(b"b"), recall.get(b"c"), len(recall)) == ("A", None, None, 1)
    time.now += 10
    assert (recall.get(b"a"), len(recall)) == (None, 0)


def test_a_fault_reaches_everybody_who_waits_and_the_next_one_asks_anew() -> None:
    calls: SharedCalls[int] = SharedCalls()

    def raising(error: Exception) -> Callable[[], Coroutine[object, object, int]]:
        async def ask() -> int:
            await asyncio.sleep(0)
            raise error

        return ask

    async def right() -> int:
        return 7

    async def scene() -> None:
        fault = ZeroDivisionError()
        waiting = [calls.share(b"a", raising(fault)) for _ in range(3)]
        assert await asyncio.gather(*waiting, return_exceptions=True) == [fault] * 3
        await asyncio.sleep(0)
        assert await calls.share(b"a", right) == 7

    asyncio.run(scene())
