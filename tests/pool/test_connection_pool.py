"""The pool by itself: no network, no real time."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import pytest

from django_lettermint.exceptions import PoolClosed, PoolTimeout
from django_lettermint.pool import connection as lease_module
from django_lettermint.pool import connection_pool, slots
from django_lettermint.pool.connection import LIFETIME_JITTER
from django_lettermint.pool.connection_pool import PING_TIMEOUT
from tests.fake_connections import Caller, FakePool, callers


class Interrupt(BaseException):
    """What KeyboardInterrupt, SystemExit and gevent.Timeout have in common."""


def interrupt() -> NoReturn:
    raise Interrupt


# Lending and returning.


def test_nothing_is_dialled_before_somebody_asks() -> None:
    pool = FakePool()

    assert pool.dialled == []
    assert pool.empty


def test_a_connection_is_lent_again() -> None:
    pool = FakePool()

    first, second = pool.lent(), pool.lent()

    assert first is second
    assert not first.closed
    assert pool.stats() == {
        "size": 1,
        "idle": 1,
        "in_use": 0,
        "waiting": 0,
        "requests": 2,
        "waits": 0,
        "wait_seconds": 0.0,
        "timeouts": 0,
        "opened": 1,
        "open_errors": 0,
        "reused": 1,
        "messages": 0,
        "retries": 0,
        "resets": 0,
        "pings": 0,
        "closed": {},
    }


def test_a_lease_tells_whether_the_connection_was_parked_before() -> None:
    pool = FakePool()

    with pool.lease() as lease:
        assert not lease.reused
    with pool.lease() as lease:
        assert lease.reused


def test_a_connection_in_use_is_not_lent_to_another() -> None:
    pool = FakePool()

    with pool.lease() as first, pool.lease() as second:
        assert first.connection is not second.connection
        assert pool.stats()["in_use"] == 2


def test_the_connection_parked_last_is_lent_first() -> None:
    pool = FakePool()
    _, newest = pool.park(2)

    assert pool.lent() is newest


def test_an_error_of_the_holder_does_not_cost_a_connection_that_is_in_step() -> None:
    pool = FakePool()

    with pytest.raises(RuntimeError), pool.lease() as lease:
        raise RuntimeError

    assert pool.lent() is lease.connection


def test_a_connection_out_of_step_is_closed_without_a_word() -> None:
    pool = FakePool()
    with pool.lease() as lease:
        lease.connection.in_step = False

    assert lease.connection.closed
    assert lease.connection.goodbyes == 0
    assert pool.stats()["closed"] == {"error": 1}
    assert pool.empty


def test_a_connection_that_needs_a_reset_is_parked_and_counted() -> None:
    pool = FakePool()
    with pool.lease() as lease:
        lease.connection.dirty = True

    assert pool.lent() is lease.connection
    # It was still dirty when it came back the second time.
    assert pool.stats()["resets"] == 2


def test_messages_are_counted_while_a_connection_is_in_use_and_after() -> None:
    pool = FakePool()
    with pool.lease() as lease:
        lease.connection.messages += 3
        assert pool.stats()["messages"] == 3
        lease.connection.messages += 2
    assert pool.stats()["messages"] == 5


def test_a_fresh_connection_is_dialled_though_one_is_parked() -> None:
    pool = FakePool()
    (parked,) = pool.park(1)

    with pool.lease(fresh=True) as lease:
        assert lease.connection is not parked
        assert not lease.reused
    assert not parked.closed


def test_a_fresh_connection_replaces_the_oldest_when_there_is_no_room() -> None:
    pool = FakePool(max_size=2)
    oldest, newest = pool.park(2)

    with pool.lease(fresh=True):
        assert (oldest.closed, newest.closed) == (True, False)
        assert pool.size == 2
    assert pool.stats()["closed"] == {"replaced": 1}


def test_a_fresh_connection_replaces_the_one_that_was_handed_over() -> None:
    pool = FakePool(max_size=1)
    with pool.lease() as lease:
        caller = Caller(pool, fresh=True)
        caller.ask()
    caller.arrived.wait(30)

    assert caller.lease is not None
    assert caller.lease.connection is not lease.connection
    assert lease.connection.closed
    caller.end()


def test_without_parking_each_connection_is_closed_on_return() -> None:
    pool = FakePool(park=False, max_size=1)

    with pool.lease() as first, pool.lease() as second:
        assert first.connection is not second.connection
    assert first.connection.closed
    assert first.connection.goodbyes == 1
    assert pool.stats()["closed"] == {"unpooled": 2}
    assert repr(pool) == (
        "<ConnectionPool relay.test unpooled idle=0 in_use=0 waiting=0 max_size=inf>"
    )


def test_the_state_is_shown() -> None:
    pool = FakePool(max_size=3)
    pool.park(2)

    with pool.lease():
        assert repr(pool) == (
            "<ConnectionPool relay.test idle=1 in_use=1 waiting=0 max_size=3>"
        )


# Dialling.


def test_the_dial_may_take_as_long_as_the_caller_has() -> None:
    pool = FakePool()

    with pool.lease(seconds=7):
        assert pool.ready_by == [pool.now + 7]


@pytest.mark.parametrize("error", [OSError(), Interrupt()])
def test_a_failed_dial_gives_the_slot_back(error: BaseException) -> None:
    pool = FakePool(max_size=1)

    def fail() -> None:
        raise error

    pool.before_dial = fail
    for _ in range(3):
        with pytest.raises(type(error)), pool.lease():
            pass
    assert pool.empty
    assert pool.stats()["open_errors"] == 3

    pool.before_dial = lambda: None
    pool.lent()


def test_a_failed_dial_hands_its_slot_to_the_first_who_waits() -> None:
    pool = FakePool(max_size=1)
    caller = Caller(pool)

    def fail() -> None:
        pool.before_dial = lambda: None
        caller.ask()
        raise OSError

    pool.before_dial = fail
    with pytest.raises(OSError, match=r"^$"), pool.lease():
        pass
    assert caller.arrived.wait(30)
    assert caller.lease is not None
    caller.end()


def test_a_connection_being_dialled_takes_a_slot() -> None:
    pool = FakePool(max_size=1, timeout=0.01)

    def ask_again() -> None:
        with pytest.raises(PoolTimeout), pool.lease():
            pass

    pool.before_dial = ask_again
    pool.lent()
    assert len(pool.dialled) == 1


# Limits.


@pytest.mark.parametrize(
    ("reason", "options", "seconds"),
    [("idle", {"max_idle": 45}, 45), ("lifetime", {"max_lifetime": 30}, 30)],
)
def test_an_idle_connection_is_closed_when_its_time_is_over(
    reason: str, options: dict[str, Any], seconds: float
) -> None:
    pool = FakePool(**options)
    old, other = pool.park(2)
    pool.now += seconds

    assert pool.lent() not in (old, other)
    assert old.closed
    assert old.goodbyes == 1
    assert pool.stats()["closed"] == {reason: 2}


def test_expired_connections_keep_their_slots_until_the_server_has_answered() -> None:
    pool = FakePool(max_size=3)
    connections = pool.park(3)
    sizes: list[int] = []
    for connection in connections:
        connection.on_goodbye = lambda: sizes.append(pool.size)
    pool.now += 1000
    pool.expire()

    assert sizes == [3, 2, 1]
    # One hung server must not cost the caller more than one limit.
    assert len({*connections[0].awaited, *connections[1].awaited}) == 1
    assert len(connections[0].awaited) == 1


def test_an_expired_connection_that_is_dead_gets_no_goodbye() -> None:
    pool = FakePool()
    (dead,) = pool.park(1)
    dead.healthy = False
    pool.now += 1000
    pool.expire()

    assert (dead.closed, dead.goodbyes) == (True, 0)


def test_a_connection_within_its_limits_is_kept() -> None:
    pool = FakePool(max_idle=45, max_lifetime=1000)
    (connection,) = pool.park(1)
    pool.now += 44.9

    assert pool.lent() is connection


def test_a_connection_too_old_on_return_is_closed() -> None:
    pool = FakePool(max_lifetime=300)
    with pool.lease() as lease:
        pool.now += 300

    assert lease.connection.closed
    assert lease.connection.goodbyes == 1
    assert pool.stats()["closed"] == {"lifetime": 1}


def test_a_connection_that_reaches_its_limit_on_the_way_to_a_caller_is_replaced() -> (
    None
):
    pool = FakePool(max_idle=45, ping_after=None)
    (late,) = pool.park(1)

    def clock() -> float:
        pool.now += 20  # a second look is too late
        return pool.now

    pool._clock = clock
    assert pool.lent() is not late
    assert late.goodbyes == 1
    assert pool.stats()["closed"] == {"idle": 1}


def test_lifetimes_are_jittered() -> None:
    pool = FakePool(max_lifetime=100, max_idle=1000, max_size=50)
    pool.park(50)

    pool.now += 100 * (1 - LIFETIME_JITTER) - 0.001
    pool.expire()
    assert pool.size == 50
    pool.now += 50 * LIFETIME_JITTER
    pool.expire()
    assert 0 < pool.size < 50


@pytest.mark.parametrize(
    ("max_messages", "mail_max", "limit"),
    [(3, None, 3), (3, 2, 2), (2, 3, 2), (0, 4, 4), (0, None, None)],
)
def test_a_connection_carries_so_many_messages(
    max_messages: int, mail_max: int | None, limit: int | None
) -> None:
    pool = FakePool(max_messages=max_messages, mail_max=mail_max)
    for _ in range(5):
        with pool.lease() as lease:
            lease.connection.messages += 1

    assert pool.dialled[0].messages == (limit or 5)
    assert pool.stats()["closed"] == ({"messages": 5 // limit} if limit else {})


def test_a_connection_reaches_its_limit_while_a_caller_waits() -> None:
    pool = FakePool(max_size=1, max_messages=1)
    with pool.lease() as lease:
        lease.connection.messages = 1
        caller = Caller(pool)
        caller.ask()
    assert caller.arrived.wait(30)
    assert caller.lease is not None
    assert caller.lease.connection is pool.dialled[1]
    caller.end()


def test_a_connection_is_closed_before_its_slot_is_free() -> None:
    pool = FakePool(max_size=1, max_messages=1)
    with callers(pool, 20) as threads:
        for thread in threads:
            assert thread.arrived.wait(30)
            assert sum(not each.closed for each in pool.dialled) == 1
            assert thread.lease is not None
            thread.lease.connection.messages = 1
            thread.leave.set()


def test_connections_parked_up_to_a_moment_are_closed_as_surplus() -> None:
    pool = FakePool()
    leases = [pool.lease() for _ in range(3)]
    connections = [lease.__enter__().connection for lease in leases]
    for lease in leases:
        pool.now += 1
        lease.__exit__(None, None, None)

    pool.expire(pool.parked_at()[1])

    assert [each.closed for each in connections] == [True, True, False]
    assert pool.stats()["closed"] == {"surplus": 2}


# Liveness.


def test_a_connection_that_is_dead_is_replaced() -> None:
    pool = FakePool()
    (dead,) = pool.park(1)
    dead.healthy = False

    assert pool.lent() is not dead
    assert dead.closed
    assert dead.goodbyes == 0
    assert pool.stats()["closed"] == {"stale": 1}


def test_the_next_parked_one_is_tried_before_dialling() -> None:
    pool = FakePool()
    good, *dead = pool.park(4)
    for connection in dead:
        connection.healthy = False

    assert pool.lent() is good
    assert len(pool.dialled) == 4


@pytest.mark.parametrize(
    ("ping_after", "idle", "pings"),
    [(20, 19.9, 0), (20, 20, 1), (0, 0, 1), (None, 44, 0)],
)
def test_a_connection_is_pinged_after_so_many_idle_seconds(
    ping_after: float | None, idle: float, pings: int
) -> None:
    pool = FakePool(ping_after=ping_after)
    (connection,) = pool.park(1)
    pool.now += idle

    assert pool.lent() is connection
    assert connection.pings == [PING_TIMEOUT] * pings
    assert pool.stats()["pings"] == pings


def test_a_connection_that_does_not_answer_the_ping_is_closed_without_a_word() -> None:
    pool = FakePool(ping_after=0)
    (mute,) = pool.park(1)
    mute.answer = lambda: False

    assert pool.lent() is not mute
    assert mute.closed
    assert mute.goodbyes == 0


def test_a_connection_that_is_visibly_dead_is_not_pinged() -> None:
    pool = FakePool(ping_after=0)
    (dead,) = pool.park(1)
    dead.healthy = False

    pool.lent()
    assert dead.pings == []


def test_pings_take_the_time_that_is_left_for_the_lease() -> None:
    pool = FakePool(ping_after=0, timeout=8)
    connections = pool.park(3)

    def lose_five_seconds() -> bool:
        pool.now += min(connections[2 - len(order)].pings[-1], 5)
        order.append(pool.now)
        return False

    order: list[float] = []
    for connection in connections:
        connection.answer = lose_five_seconds
    pool.lent()

    assert [each.pings for each in reversed(connections)] == [[5], [3], [0]]


def test_an_interrupt_within_a_ping_closes_the_connection() -> None:
    pool = FakePool(ping_after=0)
    (connection,) = pool.park(1)
    connection.answer = interrupt

    with pytest.raises(Interrupt), pool.lease():
        pass
    assert connection.closed
    assert pool.empty
    assert pool.stats()["closed"] == {"error": 1}


def test_an_interrupt_within_a_goodbye_still_closes_and_frees_the_slot() -> None:
    pool = FakePool(max_size=1)
    (connection,) = pool.park(1)
    connection.on_goodbye = interrupt
    pool.now += 1000

    with pytest.raises(Interrupt), pool.lease():
        pass
    assert connection.closed
    assert pool.empty


# Waiting.


def test_a_caller_waits_for_a_connection_to_come_back() -> None:
    pool = FakePool(max_size=1)
    with pool.lease() as lease:
        caller = Caller(pool)
        caller.ask()
        assert pool.stats()["waiting"] == 1
        assert not pool.empty
    assert caller.arrived.wait(30)
    assert caller.lease is lease
    assert pool.stats()["waits"] == 1
    caller.end()


def test_callers_are_served_in_the_order_of_their_arrival() -> None:
    pool = FakePool(max_size=1)
    with pool.lease():
        waiting = [Caller(pool) for _ in range(5)]
        for caller in waiting:
            caller.ask()
    for number, caller in enumerate(waiting):
        assert caller.arrived.wait(30)
        assert not any(later.arrived.is_set() for later in waiting[number + 1 :])
        caller.end()


def test_who_returns_a_connection_and_asks_again_stands_behind_who_waits() -> None:
    pool = FakePool(max_size=1)
    caller = Caller(pool)
    with pool.lease():
        caller.ask()
    with pytest.raises(PoolTimeout), pool.lease(seconds=0):
        pass
    assert caller.arrived.wait(30)
    caller.end()
    pool.lent()


def test_a_caller_waits_no_longer_than_the_timeout() -> None:
    pool = FakePool(max_size=1, timeout=0.01)

    with (
        pool.lease(),
        pytest.raises(PoolTimeout, match=r"no connection to relay\.test .* 0\.01 s"),
        pool.lease(),
    ):
        pass
    assert pool.stats()["timeouts"] == 1
    assert pool.stats()["waiting"] == 0


def test_a_caller_with_less_time_waits_less() -> None:
    pool = FakePool(max_size=1, timeout=1000)

    with pool.lease(), pytest.raises(PoolTimeout), pool.lease(seconds=0):
        pass


def test_the_time_spent_waiting_is_counted() -> None:
    pool = FakePool(max_size=1)
    with pool.lease():
        caller = Caller(pool)
        caller.ask()
        pool.now += 2.5
    caller.end()

    assert pool.stats()["wait_seconds"] == 2.5


def test_so_many_may_wait_and_no_more() -> None:
    pool = FakePool(max_size=1, max_waiting=2)
    with callers(pool, 3) as threads:
        with (
            pytest.raises(
                PoolTimeout, match=r"queue .* is full, 2 long .* max_waiting"
            ),
            pool.lease(),
        ):
            pass
        assert pool.stats()["waiting"] == 2
        assert pool.stats()["timeouts"] == 1
        threads[0].leave.set()
        assert threads[1].arrived.wait(30)


@pytest.mark.parametrize(
    ("options", "others"),
    [({"timeout": 0.001}, 1), ({"max_waiting": 1, "timeout": 3600}, 2)],
)
def test_a_patient_caller_minds_neither_the_timeout_nor_the_queue(
    options: dict[str, Any], others: int
) -> None:
    pool = FakePool(max_size=1, **options)
    with callers(pool, others) as threads:

        def leave() -> float:
            if len(pool._slots.waiting) == others:
                for thread in threads:
                    thread.leave.set()
            return pool.now

        pool._clock = leave
        with pool.lease(patient=True):
            pass
    assert pool.stats()["timeouts"] == 0


def test_a_slot_that_is_handed_over_when_time_is_up_is_taken() -> None:
    pool = FakePool(max_size=1, timeout=10)
    with callers(pool, 1) as (holder,):

        def time_is_up() -> float:
            if threading.current_thread() is holder or not pool._slots.waiting:
                return pool.now
            holder.end()
            return pool.now + 11

        pool._clock = time_is_up
        assert pool.lent() is pool.dialled[0]
    assert pool.size == 1


def test_a_slot_that_comes_back_after_a_wait_timed_out_is_not_lost() -> None:
    pool = FakePool(max_size=1, timeout=0.001)
    with pool.lease() as lease:
        for _ in range(3):
            with pytest.raises(PoolTimeout), pool.lease():
                pass

    assert pool.lent() is lease.connection


def test_an_interrupted_wait_leaves_the_queue() -> None:
    pool = FakePool(max_size=1)

    with pool.lease():
        pool._clock = lambda: interrupt() if pool._slots.waiting else pool.now
        with pytest.raises(Interrupt), pool.lease():
            pass
        assert pool.stats()["waiting"] == 0
    pool.lent()


# Closing.


def test_a_closed_pool_returns_what_was_idle_and_keeps_nothing() -> None:
    pool = FakePool()
    idle = pool.park(2)

    with pool.lease() as lease:
        assert pool.close() == idle[:1]
        closed_in_use = lease.connection.closed
    assert (closed_in_use, lease.connection.closed) == (False, True)
    assert lease.connection.goodbyes == 1
    assert pool.stats()["closed"] == {"shutdown": 2}
    assert pool.size == 0
    assert " shutdown " in repr(pool)


def test_closing_twice_is_harmless() -> None:
    pool = FakePool()
    pool.park(1)

    assert len(pool.close()) == 1
    assert pool.close() == []
    assert pool.stats()["closed"] == {"shutdown": 1}


def test_who_waits_when_the_pool_is_closed_gets_an_error() -> None:
    pool = FakePool(max_size=1)
    with pool.lease(), callers(pool, 2) as waiting:
        pool.close()
        for caller in waiting:
            assert caller.arrived.wait(30)
            assert isinstance(caller.error, PoolClosed)
            assert "nothing was sent; send it again" in str(caller.error)
    assert pool.empty


def test_who_got_hold_of_a_pool_just_before_it_was_closed_is_served() -> None:
    pool = FakePool()
    pool.close()

    assert pool.lent().closed


# Forks, played in one process.


def test_a_child_closes_what_is_idle_and_in_use_without_a_word() -> None:
    pool = FakePool()
    pool.park(2)
    with pool.lease():
        pool.abandon()
    assert all(each.closed and not each.goodbyes for each in pool.dialled)
    assert pool.empty
    assert pool.lent().closed


def test_a_child_does_not_wait_for_a_lock_that_nobody_will_release() -> None:
    pool = FakePool()
    pool.park(1)
    pool._lock.acquire()

    pool.abandon()

    assert pool.empty


def test_a_child_does_not_wait_for_threads_that_do_not_exist() -> None:
    pool = FakePool(max_size=1, timeout=0.05)
    with callers(pool, 2) as (_, waiter):
        pool.abandon()
        pool.lent()
        assert waiter.arrived.wait(30)
        assert isinstance(waiter.error, PoolClosed)
    assert pool.empty


def test_a_child_forked_without_hooks_keeps_nothing_that_comes_back() -> None:
    pool = FakePool()
    with pool.lease() as lease:
        pool._pid = os.getppid()

    assert lease.connection.closed
    assert lease.connection.goodbyes == 0
    assert pool.empty


# Interrupts at any point.


class Interrupter:
    """Raises an Interrupt at the n-th point where Python handles a signal.

    These are the end of a call of C code, and the begin of a function. (The resumption
    of a generator is one as well, but before 3.12 a profiler cannot act there.)
    """

    MODULES = (connection_pool, slots, lease_module, contextlib)
    FILES = frozenset(str(each.__file__) for each in MODULES)

    def __init__(self, at: int) -> None:
        self.at = at
        self.points = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        is_begin = event == "call" and not frame.f_code.co_flags & inspect.CO_GENERATOR
        if (event == "c_return" or is_begin) and frame.f_code.co_filename in self.FILES:
            self.points += 1
            if self.points == self.at:
                sys.setprofile(None)
                raise Interrupt


def interrupted(act: Callable[[FakePool], None], pool: FakePool, at: int) -> bool:
    """Act, and tell whether the interrupt came before the end."""
    sys.setprofile(Interrupter(at))
    try:
        act(pool)
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def use_a_parked_one(pool: FakePool) -> None:
    pool.park(1)
    pool.now += 25  # long enough for a ping
    pool.lent()


def find_two_dead(pool: FakePool) -> None:
    _, *dead = pool.park(3)
    for connection in dead:
        connection.healthy = False
    pool.lent()


def reach_a_limit(pool: FakePool) -> None:
    with pool.lease() as held:
        held.connection.messages = 100
    pool.park(3)
    pool.now += 50
    pool.lent()


def replace_the_oldest(pool: FakePool) -> None:
    pool.park(3)
    with pool.lease(fresh=True):
        pass


def wait_in_vain(pool: FakePool) -> None:
    with (
        contextlib.suppress(PoolTimeout),
        pool.lease(),
        pool.lease(),
        pool.lease(),
        pool.lease(seconds=0),
    ):
        pass


@pytest.mark.parametrize(
    "act",
    [use_a_parked_one, find_two_dead, reach_a_limit, replace_the_oldest, wait_in_vain],
)
def test_an_interrupt_at_any_point_loses_no_slot(
    act: Callable[[FakePool], None],
) -> None:
    at = 1
    while interrupted(act, pool := FakePool(max_size=3), at):
        at += 1
        assert pool.size == len(pool.parked_at()), f"at point {at}"
        assert pool.stats()["waiting"] == 0
        with pool.lease() as one, pool.lease() as two, pool.lease() as three:
            connections = {one.connection, two.connection, three.connection}
            assert len(connections) == 3
    assert at > 50


def test_an_interrupt_in_a_hand_over_leaves_nobody_asleep() -> None:
    at, ended = 0, False
    while not ended:
        at += 1
        pool = FakePool(max_size=1, timeout=30)
        held = [pool.lease()]
        held[0].__enter__()
        with callers(pool, 2) as waiting:
            ended = not interrupted(lambda _: give_back(held), pool, at)  # noqa: B023
            for caller in waiting:
                assert caller.arrived.wait(5), f"at point {at}"
                caller.end()
        assert pool.stats()["timeouts"] == 0
    assert at > 10


def give_back(held: list[Any]) -> None:
    held.pop().__exit__(None, None, None)
