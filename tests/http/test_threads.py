"""Threads that come when they are needed and go when they are not."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import Future

import pytest

from gnomon.http.threads import START_SECONDS, NoThread, Panic, Threads
from helpers.live import eventually


def alive(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_no_call_waits_for_another_and_a_thread_is_used_again() -> None:
    threads, hold = Threads("t1"), threading.Event()
    waiting = [threads.submit(hold.wait) for _ in range(50)]
    assert threads.submit(lambda: 7).result(10) == 7
    assert alive("t1") == 51
    hold.set()
    assert all(future.result(10) for future in waiting)
    assert eventually(lambda: threads._spare == 51)
    for i in range(200):
        assert threads.submit(lambda i=i: i).result(10) == i  # type: ignore[misc]
        assert alive("t1") == 51
    threads.close()
    assert eventually(lambda: alive("t1") == 0)


def test_a_thread_that_has_nothing_to_do_ends_and_the_next_call_gets_another() -> None:
    threads = Threads("t2", idle_seconds=0.05)
    for _ in range(3):
        assert threads.submit(lambda: alive("t2")).result(10) >= 1
        assert eventually(lambda: alive("t2") == 0)
    threads.close()


def test_calls_that_come_while_threads_end_are_all_carried_out() -> None:
    threads = Threads("t3", idle_seconds=0.001)
    for i in range(300):
        assert [future.result(10) for future in [threads.submit(lambda i=i: i) for _ in range(4)]] == [i] * 4  # type: ignore[misc]
        time.sleep(0.001)
    try:
        assert eventually(lambda: alive("t3") == 0)
        assert threads._spare == 0
    finally:
        threads.close()  # a thread that is left would keep this process from ending


def test_what_a_call_raises_is_the_callers_and_the_thread_goes_on() -> None:
    def broken() -> None:
        raise KeyError("mine")

    threads = Threads("t4")
    with pytest.raises(KeyError, match="mine"):
        threads.submit(broken).result(10)
    assert threads.submit(lambda: 1).result(10) == 1
    assert alive("t4") == 1
    threads.close()


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_what_is_no_exception_reaches_no_event_loop(raised: BaseException) -> None:
    """A loop whose task raises SystemExit ends, and with it every connection."""

    def broken() -> None:
        raise raised

    async def answer() -> str:
        try:
            await asyncio.wrap_future(threads.submit(broken))
        except BaseException as error:
            return repr(error)
        return ""

    threads = Threads("t8")
    told = asyncio.run(answer())
    assert told == repr(Panic(f"{type(raised).__name__}: {raised}"))
    assert threads.submit(lambda: 1).result(10) == 1
    threads.close()


def test_a_thread_that_cannot_be_started_costs_its_own_call_and_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, carried_out = Threads("t6", idle_seconds=0.05), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(NoThread, match="new thread"):
            threads.submit(lambda: carried_out.append("what was refused"))
    for i in range(3):
        assert threads.submit(lambda i=i: i).result(10) == i  # type: ignore[misc]
        assert eventually(lambda: alive("t6") == 0)
        assert threads._spare == 0
    assert carried_out == []


@pytest.mark.slow
def test_a_thread_that_dies_before_its_first_line_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for it: Python's own `start` waits for its word for ever."""
    threads, told, patched = Threads("t9"), [], threading.Event()

    def submit() -> None:
        patched.wait(30)
        with pytest.raises(NoThread, match="did not begin") as raised:
            threads.submit(lambda: None)
        told.append(raised.value)

    submitting = threading.Thread(target=submit, daemon=True)
    submitting.start()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_start_new_thread", lambda *arguments: 1)
        patched.set()
        submitting.join(START_SECONDS + 30)
        assert len(told) == 1
    assert threads.submit(lambda: 1).result(10) == 1
    threads.close()


def test_closing_ends_those_at_work_with_their_work_and_a_late_call_is_carried_out() -> None:
    threads, hold = Threads("t5"), threading.Event()
    at_work: Future[bool] = threads.submit(hold.wait)
    threads.submit(lambda: None).result(10)
    assert eventually(lambda: threads._spare == 1)
    threads.close()
    assert eventually(lambda: alive("t5") == 1)
    assert threads.submit(lambda: 3).result(10) == 3
    hold.set()
    assert at_work.result(10)
    assert eventually(lambda: alive("t5") == 0)


def test_what_a_failed_call_held_is_free_at_once_and_not_at_the_next_collection() -> None:
    class Held:
        """A prompt of megabytes, say."""

    held: list[weakref.ref[Held]] = []

    def broken() -> None:
        local = Held()
        held.append(weakref.ref(local))
        raise KeyError("mine")

    threads = Threads("t7", idle_seconds=0.05)
    gc.disable()
    try:
        with pytest.raises(KeyError, match="mine"):
            threads.submit(broken).result(10)
        assert eventually(lambda: alive("t7") == 0)
        assert held[0]() is None
    finally:
        gc.enable()
