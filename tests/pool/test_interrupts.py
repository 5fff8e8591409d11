"""Signals that raise anywhere, and a lock that is never released: no mail hangs."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from django_lettermint.exceptions import PoolTimeout
from django_lettermint.pool import close_pools, get_pool
from django_lettermint.pool.connection_pool import LOCK_TIMEOUT
from tests.faultserver import FaultServer
from tests.pool.fakes import Caller, FakePool, callers, locked
from tests.programs import output
from tests.sending import backend

#: How long signals raise; set it to 20 or more to search for what is rare.
SECONDS = float(os.environ.get("INTERRUPT_SECONDS", "2"))


class Interrupt(BaseException):
    """What KeyboardInterrupt, SystemExit and gevent.Timeout have in common."""


# A lock that is never released.


def test_a_broken_lock_is_left_with_the_idle_connections(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = FakePool()
    idle = pool.keep_idle(2)

    with locked(pool.slots.lock):
        assert pool.use() not in idle
    assert all(session.closed and not session.said_quit for session in idle)
    assert pool.stats()["closed"] == {"broken": 2}
    assert "an interrupt broke the pool's lock" in caplog.text
    assert pool.use() is pool.opened[2]


def test_a_connection_in_use_outlives_a_broken_lock_and_is_not_kept() -> None:
    pool = FakePool()
    with pool.hold() as connection, locked(pool.slots.lock):
        pool.stats()
        closed_in_use = connection.session.closed

    assert (closed_in_use, connection.session.closed) == (False, True)
    assert pool.stats()["closed"] == {"broken": 1}
    assert pool.empty


def test_who_waits_when_a_lock_breaks_waits_on_elsewhere() -> None:
    pool = FakePool(max_size=1)
    with callers(pool, 3) as (holder, *waiting):
        with locked(pool.slots.lock):
            # There is room in the new slots, for the one that looks first.
            while not any(each.arrived.wait(0.01) for each in waiting):
                pass
        served, other = sorted(waiting, key=lambda each: not each.arrived.is_set())
        assert served.session is pool.opened[1]
        assert not other.arrived.is_set()
        holder.end()
        served.end()
        assert other.session is served.session


def test_two_threads_that_find_a_lock_broken_leave_it_once() -> None:
    pool = FakePool()
    broken = pool.slots
    with locked(broken.lock):
        pool.keep_idle(1)
        pool.leave_broken(broken)

    assert pool.size == 1


def test_a_signal_handler_that_sends_mail_waits_for_nothing() -> None:
    pool = FakePool()
    began = time.monotonic()
    pool.keep_idle(1)

    # As if the handler ran while this thread has locked the slots.
    session = pool._locked(lambda _: pool.use())

    assert time.monotonic() - began < LOCK_TIMEOUT
    assert pool.use() is session is pool.opened[1]


def test_closing_does_not_wait_for_a_broken_lock_beyond_its_timeout() -> None:
    with FaultServer(tls=None) as server:
        sender = backend(server)
        sender.open()
        with locked(get_pool(sender.config.endpoint).slots.lock):
            began = time.monotonic()
            close_pools(timeout=0.1)
            assert time.monotonic() - began < 0.1 + LOCK_TIMEOUT / 2
        assert server.wait_for(lambda: server.open_connections == 0)


BROKEN_LOCK = """
import logging
logging.disable()

def hold():
    with pool.get_pool(sender.config.endpoint).slots.lock:
        held.release()
        threading.Event().wait()

held = threading.Semaphore(0)
send("before@example.org")
threading.Thread(target=hold, daemon=True).start()
held.acquire()
send("after@example.org")
threading.Thread(target=hold, daemon=True).start()
held.acquire()  # at exit as well
"""


def test_neither_mail_nor_exit_hangs_for_a_broken_lock() -> None:
    with FaultServer(tls=None) as server:
        output(BROKEN_LOCK, server.options())

        assert list(server.delivered) == ["before@example.org", "after@example.org"]


# Signals at random.


@contextmanager
def alarms() -> Iterator[Callable[[float], object]]:
    """Give a function that has an Interrupt raised in so many seconds; 0: not at all."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        own = interrupt.__code__
        # Up to the scene, past an interrupt of this function.
        while frame and (frame.f_code is own or frame.f_code.co_filename != __file__):
            # coverage.py holds a lock in its own code, which would stay locked.
            if f"{os.sep}coverage{os.sep}" in frame.f_code.co_filename:
                signal.setitimer(signal.ITIMER_REAL, 0.0001)
                return
            frame = frame.f_back
        raise Interrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.timeout(60, method="thread")
def test_an_interrupt_while_another_thread_has_the_lock_propagates() -> None:
    pool = FakePool()
    with alarms() as alarm, locked(pool.slots.lock):
        alarm(0.01)
        with pytest.raises(Interrupt):
            pool.stats()

    assert pool.use() is pool.opened[0]


def use_an_idle_one(pool: FakePool) -> None:
    pool.keep_idle(1)
    pool.now += 25  # long enough for a ping
    pool.use()


def find_two_dead(pool: FakePool) -> None:
    _, *dead = pool.keep_idle(3)
    for session in dead:
        session.healthy = False
    pool.use()


def reach_limits(pool: FakePool) -> None:
    with pool.hold() as connection:
        connection.session.messages = 100
    pool.keep_idle(3)
    pool.now += 50
    pool.use()


def replace_the_oldest(pool: FakePool) -> None:
    pool.keep_idle(3)
    with pool.hold(force_new=True):
        pass


def wait_in_vain(pool: FakePool) -> None:
    with (
        contextlib.suppress(PoolTimeout),
        pool.hold(),
        pool.hold(),
        pool.hold(),
        pool.hold(seconds=0),
    ):
        pass


SCENES = [
    use_an_idle_one,
    find_two_dead,
    reach_limits,
    replace_the_oldest,
    wait_in_vain,
]


#: Python swallows what is raised within a destructor, and says so.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.timeout(60 + 2 * SECONDS, method="thread")
def test_an_interrupt_at_any_moment_loses_no_slot() -> None:
    interrupts = 0
    end = time.monotonic() + SECONDS
    with alarms() as alarm:
        while time.monotonic() < end:
            pool = FakePool(max_size=3)
            try:
                alarm(random.uniform(1e-6, 3e-4))
                random.choice(SCENES)(pool)
                alarm(0)
            except Interrupt:
                interrupts += 1
            # All slots are there, and no connection is in two of them.
            assert pool.size == pool.stats()["idle"], pool
            assert pool.stats()["waiting"] == 0
            with pool.hold() as one, pool.hold() as two, pool.hold() as three:
                assert len({one.session, two.session, three.session}) == 3
    assert interrupts > 20 * SECONDS


@pytest.mark.timeout(60 + 2 * SECONDS, method="thread")
def test_an_interrupted_hand_over_leaves_nobody_waiting() -> None:
    end = time.monotonic() + SECONDS
    with alarms() as alarm:
        while time.monotonic() < end:
            pool = FakePool(max_size=1)
            held = [pool.hold()]
            held[0].__enter__()
            caller = Caller(pool)
            caller.ask()
            try:
                alarm(random.uniform(1e-6, 1e-4))
                held.pop().__exit__(None, None, None)
                alarm(0)
            except Interrupt:
                held.clear()  # it may not have begun
            assert caller.session in pool.alive
            caller.end()


INTERRUPTED_SENDING = """
import logging, random, signal, time, warnings
warnings.simplefilter("ignore", ResourceWarning)
logging.disable()

class Interrupt(BaseException):
    pass

def interrupt(number, frame):
    raise Interrupt

def keep_sending():
    global others
    while not done:
        send(f"{others}@other.test")
        others += 1

done, others, interrupts = False, 0, 0
signal.signal(signal.SIGALRM, interrupt)
thread = threading.Thread(target=keep_sending)
thread.start()
end = time.monotonic() + float(os.environ["SECONDS"])
try:
    while time.monotonic() < end or min(interrupts, others) < 10:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-3))
            send("interrupted@example.org")
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            interrupts += 1
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    done = True
thread.join()
send("last@example.org")
stats = pool.get_stats()[0]
say((stats["in_use"], stats["waiting"], stats["timeouts"]))
say(others)
"""


@pytest.mark.timeout(60 + 2 * SECONDS, method="thread")
def test_a_process_whose_mail_is_interrupted_again_and_again_goes_on_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECONDS", str(SECONDS))
    # An interrupt within coverage.py can leave a lock of its own locked.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    with FaultServer(tls=None) as server:
        options = server.options(pool={"max_size": 2, "timeout": 5})
        state, others = output(INTERRUPTED_SENDING, options)

        assert state == "(0, 0, 0)"
        delivered = server.delivered
        assert delivered["last@example.org"] == 1
        assert {delivered[f"{n}@other.test"] for n in range(int(others))} == {1}
