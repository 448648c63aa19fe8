"""x"""

from __future__ import annotations

from gnomon.http.settings import AuthMode
from helpers.door import door, settings_for
from helpers.identity import FakeIdentity, FakeTime


def test_smoke(identity: FakeIdentity, time: FakeTime) -> None:
    for mode in (AuthMode.exchange, AuthMode.userinfo):
        with door(settings_for(identity, mode), time) as d:
            for t in (
                identity.service_token(),
                identity.service_token("sa-2", legacy=True),
                identity.user_token("a@b.c", "o1"),
            ):
                r = d.show(t)
                print(len(t), r.text)
                assert d.checked(r) == "accepted"
            assert d.outcome(identity.system_token()) == "forbidden"
            assert d.outcome(identity.refresh_token()) == "invalid"
            assert d.outcome(identity.id_token()) == "invalid"
            assert d.outcome("x.y.z") == "invalid"
