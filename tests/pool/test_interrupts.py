"""Interrupts at any moment, and a lock that stays locked: no slot is lost, no mail hangs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import pytest

from django_lettermint.exceptions import PoolTimeout
from django_lettermint.pool import close_pools, get_pool
from django_lettermint.pool.connection_pool import LOCK_TIMEOUT
from tests.faultserver import FaultServer
from tests.pool.fakes import Caller, FakePool, Interrupt, callers, locked
from tests.programs import output
from tests.sending import backend

#: How long signals are sent in each test; 20 or more find what is rare.
SECONDS = float(os.environ.get("INTERRUPT_SECONDS", "0.5"))

pytestmark = [
    pytest.mark.timeout(60 + 2 * SECONDS, method="thread"),
    # Python ignores an exception raised within a destructor, and warns.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# -- a lock that stays locked ----------------------------------------------------------


def test_slots_whose_lock_is_broken_are_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = FakePool()
    idle = pool.keep_idle(2)

    with pool.hold(force_new=True) as in_use:
        broken = pool.slots
        with locked(broken.lock):
            assert pool.use() is pool.opened[3]
        pool.leave_broken(broken)  # another thread noticed it as well
        assert "an interrupt broke the pool's lock" in caplog.text
        assert all(session.closed and not session.ending for session in idle)
        assert in_use.session in pool.alive
    assert in_use.session.closed
    assert pool.stats()["closed"] == {"broken": 3}
    assert pool.use() is pool.opened[3]
    assert pool.size == 1


def test_callers_that_wait_when_a_lock_breaks_wait_for_the_new_slots() -> None:
    pool = FakePool(max_size=1)
    with callers(pool, 3) as (holder, *waiting):
        with locked(pool.slots.lock):
            # The new slots have room for the first of them.
            while not any(each.arrived.wait(0.01) for each in waiting):
                pass
        served, other = sorted(waiting, key=lambda each: not each.arrived.is_set())
        assert served.session is pool.opened[1]
        assert not other.arrived.is_set()
        holder.end()
        served.end()
        assert other.session is served.session


def test_a_signal_handler_that_sends_mail_does_not_wait_for_its_own_thread() -> None:
    pool = FakePool()
    pool.keep_idle(1)
    began = time.monotonic()

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
            assert time.monotonic() - began < LOCK_TIMEOUT
        assert server.wait_for(lambda: server.open_connections == 0)


# -- signals at random -----------------------------------------------------------------


@contextmanager
def alarms() -> Iterator[Callable[[float], object]]:
    """Give a function that has Interrupt raised after so many seconds; 0 cancels it."""

    def raise_interrupt(number: int, frame: FrameType | None) -> None:
        own = raise_interrupt.__code__
        # Up to this file, past an interrupt of this function.
        while frame and (frame.f_code is own or frame.f_code.co_filename != __file__):
            # coverage.py has a lock of its own, which would stay locked.
            if f"{os.sep}coverage{os.sep}" in frame.f_code.co_filename:
                signal.setitimer(signal.ITIMER_REAL, 0.0001)
                return
            frame = frame.f_back
        raise Interrupt

    previous = signal.signal(signal.SIGALRM, raise_interrupt)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_an_interrupt_while_another_thread_has_the_lock_propagates() -> None:
    pool = FakePool()
    with alarms() as alarm, locked(pool.slots.lock):
        alarm(0.01)
        with pytest.raises(Interrupt):
            pool.stats()

    assert pool.use() is pool.opened[0]


def ping_one_and_find_two_dead(pool: FakePool) -> None:
    _, *dead = pool.keep_idle(3)
    pool.now += 25  # long enough for a ping
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
    with pool.hold(), pool.hold(), pool.hold(), suppress(PoolTimeout), pool.hold(0):
        pass


@pytest.mark.parametrize(
    "scene",
    [ping_one_and_find_two_dead, reach_limits, replace_the_oldest, wait_in_vain],
)
def test_an_interrupt_at_any_moment_loses_no_slot(
    scene: Callable[[FakePool], None],
) -> None:
    interrupts = 0
    end = time.monotonic() + SECONDS
    with alarms() as alarm:
        while time.monotonic() < end or interrupts < 10:
            pool = FakePool(max_size=3)
            try:
                alarm(random.uniform(1e-6, 3e-4))
                scene(pool)
                alarm(0)
            except Interrupt:
                interrupts += 1
            # All slots are there, and no connection is in two of them.
            assert pool.size == pool.stats()["idle"], pool
            assert pool.stats()["waiting"] == 0
            with pool.hold() as one, pool.hold() as two, pool.hold() as three:
                assert len({one.session, two.session, three.session}) == 3


def test_an_interrupted_hand_over_leaves_no_caller_waiting() -> None:
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
import logging, random, signal, warnings
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
while min(interrupts, others) < 100:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-3))
        send("interrupted@example.org")
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
done = True
thread.join()
stats = pool.get_stats()[0]
say((stats["in_use"], stats["waiting"], stats["timeouts"]))
say(others)

def hold():
    with pool.get_pool(sender.config.endpoint).slots.lock:
        held.release()
        threading.Event().wait()

# Neither mail nor exit hangs for a broken lock.
held = threading.Semaphore(0)
for to in ("last@example.org", None):
    threading.Thread(target=hold, daemon=True).start()
    held.acquire()
    if to:
        send(to)
"""


def test_a_process_goes_on_sending_after_interrupts_and_broken_locks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
