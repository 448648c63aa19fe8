"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.identity import FakeIdentity, FakeTime
from helpers.loopback import Loopback, loopback


@pytest.fixture(scope="session")
def native_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the native product and compiled programs are kept, once a run for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def identity_address() -> Iterator[Loopback]:
    """Where the fake identity services of all tests are served, one after another."""
    with loopback() as served:
        yield served


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def identity(identity_address: Loopback, time: FakeTime) -> FakeIdentity:
    """A fake identity service of this test's own, on a real port."""
    service = FakeIdentity(identity_address.base, time)
    identity_address.app = service
    return service
