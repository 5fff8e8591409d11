"""The pool by itself: no network, no real time."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest

from django_lettermint.exceptions import ConnectFailed, PoolClosed, PoolTimeout
from django_lettermint.pool import CloseReason
from django_lettermint.pool.connection import (
    ASSUMED_LIMIT_SECONDS,
    LIFETIME_JITTER,
    RELAY_LIMIT_SECONDS,
)
from django_lettermint.pool.connection_pool import PING_TIMEOUT
from tests.pool.fakes import (
    Caller,
    FakePool,
    callers,
    too_many_connections,
)


class Interrupt(BaseException):
    """What KeyboardInterrupt, SystemExit and gevent.Timeout have in common."""


def interrupt() -> NoReturn:
    raise Interrupt


def closed(pool: FakePool) -> dict[str, int]:
    return pool.stats()["closed"]


# Leasing and returning.


def test_nothing_is_opened_before_it_is_asked_for() -> None:
    pool = FakePool()

    assert pool.opened == []
    assert pool.empty


def test_a_connection_is_leased_again() -> None:
    pool = FakePool()

    first, second = pool.use(), pool.use()

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


def test_a_lease_tells_whether_the_connection_was_idle_before() -> None:
    pool = FakePool()

    with pool.hold() as connection:
        assert not connection.reused
    with pool.hold() as connection:
        assert connection.reused


def test_a_connection_in_use_is_not_leased_to_another() -> None:
    pool = FakePool()

    with pool.hold() as first, pool.hold() as second:
        assert first.session is not second.session
        assert pool.stats()["in_use"] == 2


def test_the_connection_kept_last_is_leased_first() -> None:
    pool = FakePool()
    _, newest = pool.keep_idle(2)

    assert pool.use() is newest


def test_an_error_of_the_holder_does_not_cost_a_connection_that_is_in_step() -> None:
    pool = FakePool()

    with pytest.raises(RuntimeError), pool.hold() as connection:
        raise RuntimeError

    assert pool.use() is connection.session


def test_a_connection_out_of_step_is_closed_without_quit() -> None:
    pool = FakePool()
    with pool.hold() as connection:
        connection.session.in_step = False

    assert connection.session.closed
    assert not connection.session.said_quit
    assert closed(pool) == {"error": 1}
    assert pool.empty


@pytest.mark.parametrize("in_step", [True, False])
def test_a_discarded_connection_is_closed_for_the_reason_given(
    *, in_step: bool
) -> None:
    pool = FakePool()
    with pool.hold() as connection:
        connection.session.in_step = in_step
        connection.discard(CloseReason.REFUSED)

    assert connection.session.closed
    assert connection.session.said_quit is in_step
    assert closed(pool) == {"refused": 1}
    assert pool.use() is not connection.session


def test_a_connection_that_needs_a_reset_is_kept_and_counted() -> None:
    pool = FakePool()
    with pool.hold() as connection:
        connection.session.needs_rset = True

    assert pool.use() is connection.session
    # It still needed one when it came back the second time.
    assert pool.stats()["resets"] == 2


def test_messages_are_counted_while_a_connection_is_in_use_and_after() -> None:
    pool = FakePool()
    with pool.hold() as connection:
        connection.session.messages += 3
        assert pool.stats()["messages"] == 3
        connection.session.messages += 2
    assert pool.stats()["messages"] == 5


def test_retries_are_counted_by_those_who_send() -> None:
    pool = FakePool()

    pool.count("retries")

    assert pool.stats()["retries"] == 1


def test_a_new_connection_can_be_asked_for_though_one_is_idle() -> None:
    pool = FakePool()
    (idle,) = pool.keep_idle(1)

    with pool.hold(force_new=True) as connection:
        assert connection.session is not idle
        assert not connection.reused
    assert not idle.closed


def test_a_new_connection_replaces_the_oldest_when_there_is_no_room() -> None:
    pool = FakePool(max_size=2)
    oldest, newest = pool.keep_idle(2)

    with pool.hold(force_new=True):
        assert (oldest.closed, newest.closed) == (True, False)
        assert pool.size == 2
    assert oldest.said_quit
    assert closed(pool) == {"replaced": 1}


def test_a_new_connection_replaces_the_one_that_comes_back() -> None:
    pool = FakePool(max_size=1)
    with pool.hold() as connection:
        caller = Caller(pool, force_new=True)
        caller.ask()

    assert caller.session is not connection.session
    assert connection.session.closed
    caller.end()


def test_the_state_is_shown() -> None:
    pool = FakePool(max_size=3)
    pool.keep_idle(2)

    with pool.hold():
        assert repr(pool) == (
            "<ConnectionPool relay.test idle=1 in_use=1 waiting=0 max_size=3>"
        )


# Opening.


def test_opening_has_the_callers_time_and_timeout() -> None:
    pool = FakePool()

    with pool.lease(seconds=7, timeout=2):
        assert pool.calls == [(pool.now + 7, 2)]


@pytest.mark.parametrize("error", [OSError(), Interrupt()])
def test_a_connection_that_is_not_opened_gives_its_slot_back(
    error: BaseException,
) -> None:
    pool = FakePool(max_size=1)

    def fail() -> None:
        raise error

    pool.before_connect = fail
    for _ in range(3):
        with pytest.raises(type(error)), pool.hold():
            pass
    assert pool.empty
    assert pool.stats()["open_errors"] == 3

    pool.before_connect = lambda: None
    pool.use()


def test_a_connection_that_is_not_opened_leaves_its_slot_to_the_next_in_line() -> None:
    pool = FakePool(max_size=1)
    caller = Caller(pool)

    def fail() -> None:
        pool.before_connect = lambda: None
        caller.ask()
        raise OSError

    pool.before_connect = fail
    with pytest.raises(OSError, match=r"^$"), pool.hold():
        pass
    assert caller.session in pool.alive
    caller.end()


def test_a_connection_being_opened_takes_a_slot() -> None:
    pool = FakePool(max_size=1, timeout=0.01)

    def ask_again() -> None:
        with pytest.raises(PoolTimeout), pool.hold():
            pass

    pool.before_connect = ask_again
    pool.use()
    assert len(pool.opened) == 1


# The relay's limit of connections.


class LimitedRelay:
    """Greets so many connections at once, and tells how often it refused one."""

    def __init__(self, pool: FakePool, limit: int) -> None:
        self.pool = pool
        self.limit = limit
        self.refusals = 0
        pool.before_connect = self.greet

    def greet(self) -> None:
        if len(self.pool.alive) >= self.limit:
            self.refusals += 1
            raise too_many_connections()


def test_a_refused_connection_waits_for_one_that_is_in_use() -> None:
    pool = FakePool(max_size=4)
    relay = LimitedRelay(pool, 1)

    with callers(pool, 3) as (holder, first, second):
        assert relay.refusals == 1  # the second one was told by the first
        assert pool.stats()["waiting"] == 2
        holder.end()
        assert first.session is holder.session
        first.end()
        assert second.session is holder.session
    assert pool.stats()["open_errors"] == 1


def test_who_was_refused_is_served_before_those_who_came_later() -> None:
    pool = FakePool(max_size=2)
    LimitedRelay(pool, 1)
    with pool.hold() as connection:
        early, late = Caller(pool), Caller(pool)

        def refuse() -> None:
            late.ask()  # waits at once, as the pool is full
            raise too_many_connections()

        pool.before_connect = refuse
        early.start()
        while pool.stats()["waiting"] < 2:
            early.join(0.001)
    assert early.session is connection.session
    assert not late.arrived.is_set()
    early.end()
    late.end()


def test_a_refused_connection_takes_an_idle_one_though_a_new_one_was_asked_for() -> (
    None
):
    pool = FakePool(max_size=4)
    (idle,) = pool.keep_idle(1)
    LimitedRelay(pool, 1)

    with pool.hold(force_new=True) as connection:
        assert connection.session is idle


def test_a_refused_connection_waits_no_longer_than_the_pools_timeout() -> None:
    pool = FakePool(max_size=4, timeout=0.01)
    LimitedRelay(pool, 1)

    with (
        pool.hold(),
        pytest.raises(PoolTimeout, match=r"no connection .* all 1 are in use"),
        pool.hold(),
    ):
        pass
    assert pool.stats()["in_use"] == 0


def test_a_refusal_is_raised_if_no_other_connection_is_alive() -> None:
    pool = FakePool()
    LimitedRelay(pool, 0)

    for _ in range(2):
        with pytest.raises(ConnectFailed, match="421"), pool.hold():
            pass
    assert pool.empty


def test_a_refusal_of_another_kind_is_raised_though_others_are_alive() -> None:
    pool = FakePool()

    def fail() -> NoReturn:
        error = ConnectFailed("greeting was refused: 554 go away")
        error.step = "greeting"
        raise error.with_reply(554, "go away")

    with pool.hold():
        pool.before_connect = fail
        with pytest.raises(ConnectFailed, match="554"), pool.hold():
            pass


def test_connections_that_are_all_refused_while_they_are_opened_all_fail() -> None:
    pool = FakePool(max_size=4, timeout=30)
    together = threading.Barrier(4)

    def refuse() -> NoReturn:
        if len(pool.calls) <= 4:
            together.wait(30)
        raise too_many_connections()

    pool.before_connect = refuse
    threads = [Caller(pool) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert [type(thread.error) for thread in threads] == [ConnectFailed] * 4
    assert pool.empty


def test_a_relay_that_refused_all_for_a_moment_has_told_no_limit() -> None:
    pool = FakePool(max_size=4)
    together = threading.Barrier(2)

    def refuse() -> NoReturn:
        if len(pool.calls) <= 2:
            together.wait(30)
        raise too_many_connections()

    pool.before_connect = refuse
    threads = [Caller(pool) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    pool.before_connect = lambda: None

    with callers(pool, 4):
        assert len(pool.alive) == 4


def test_a_refusal_while_others_are_being_opened_is_soon_forgotten() -> None:
    pool = FakePool(max_size=4)
    opening, go_on = threading.Event(), threading.Event()

    def greet() -> None:
        if len(pool.calls) > 1:
            raise too_many_connections()
        opening.set()
        go_on.wait(30)

    pool.before_connect = greet
    first, second = Caller(pool), Caller(pool)
    first.start()
    assert opening.wait(30)
    second.ask()
    go_on.set()
    assert first.arrived.wait(30)
    pool.before_connect = lambda: None
    pool.now += ASSUMED_LIMIT_SECONDS

    with pool.hold():
        assert second.session is not first.session
        assert len(pool.alive) == 3
    first.end()
    second.end()


def test_a_refused_connection_is_tried_again_when_the_others_are_gone() -> None:
    pool = FakePool(max_size=4)
    LimitedRelay(pool, 1)
    with pool.hold() as connection:
        caller = Caller(pool)
        caller.ask()
        connection.session.in_step = False

    assert caller.session in pool.alive
    caller.end()


def test_the_limit_is_remembered_and_then_one_more_connection_is_tried() -> None:
    pool = FakePool(max_size=4, max_lifetime=1e6, max_idle=1e6, ping_after=None)
    relay = LimitedRelay(pool, 2)

    def occupy() -> int:
        """Have four callers meet, and return how many connections were refused."""
        before = relay.refusals
        with callers(pool, 4):
            pass
        return relay.refusals - before

    assert occupy() == 1
    assert occupy() == 0
    pool.now += RELAY_LIMIT_SECONDS
    assert occupy() == 1
    assert occupy() == 0

    relay.limit = 4
    pool.now += RELAY_LIMIT_SECONDS
    with callers(pool, 4):
        assert len(pool.alive) == 4


# Limits of connections.


@pytest.mark.parametrize(
    ("reason", "options", "seconds"),
    [("idle", {"max_idle": 45}, 45), ("lifetime", {"max_lifetime": 30}, 30)],
)
def test_an_idle_connection_is_closed_when_its_time_is_over(
    reason: str, options: dict[str, Any], seconds: float
) -> None:
    pool = FakePool(**options)
    idle = pool.keep_idle(2)
    pool.now += seconds

    assert pool.use() not in idle
    assert [session.farewell for session in idle] == [["quit", "wait"]] * 2
    assert closed(pool) == {reason: 2}


def test_expired_connections_wait_until_the_mail_is_sent() -> None:
    pool = FakePool()
    idle = pool.keep_idle(2)
    pool.now += 1000

    with pool.hold():
        assert not any(session.closed for session in idle)
    assert all(session.closed for session in idle)


def test_an_expired_connection_makes_room_at_once_in_a_full_pool() -> None:
    pool = FakePool(max_size=1)
    (expired,) = pool.keep_idle(1)
    pool.now += 60

    with pool.hold() as connection:
        assert connection.session is not expired
        assert expired.said_quit
    assert closed(pool) == {"idle": 1}


def test_all_that_are_closed_say_quit_before_the_first_answer_is_awaited() -> None:
    pool = FakePool(max_size=4)
    sessions = pool.keep_idle(3)
    order: list[str] = []
    sizes: list[int] = []
    for session in sessions:
        session.farewell = order
        session.on_quit = lambda: sizes.append(pool.size)
    pool.now += 1000
    pool.use()

    assert order == ["quit"] * 3 + ["wait"] * 3
    # In their slots, so that the server never sees more than `max_size`.
    assert sizes == [4, 4, 4]


def test_an_expired_connection_that_is_dead_is_closed_without_quit() -> None:
    pool = FakePool()
    (dead,) = pool.keep_idle(1)
    dead.healthy = False
    pool.now += 1000
    pool.use()

    assert (dead.closed, dead.said_quit) == (True, False)


def test_a_connection_within_its_limits_is_kept() -> None:
    pool = FakePool(max_idle=45, max_lifetime=1000)
    (session,) = pool.keep_idle(1)
    pool.now += 44.9

    assert pool.use() is session


def test_a_connection_too_old_on_return_is_closed() -> None:
    pool = FakePool(max_lifetime=300)
    with pool.hold() as connection:
        pool.now += 300

    assert connection.session.closed
    assert connection.session.said_quit
    assert closed(pool) == {"lifetime": 1}


def test_lifetimes_are_jittered() -> None:
    pool = FakePool(max_lifetime=100, max_idle=1000, max_size=50)
    pool.keep_idle(50)

    pool.now += 100 * (1 - LIFETIME_JITTER) - 0.001
    pool.use()
    assert pool.size == 50
    pool.now += 50 * LIFETIME_JITTER
    pool.use()
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
        with pool.hold() as connection:
            connection.session.messages += 1

    with pool.hold(force_new=True) as connection:
        assert connection.max_messages == (limit or float("inf"))
    assert pool.opened[0].messages == (limit or 5)
    assert closed(pool) == ({"messages": 5 // limit} if limit else {})


def test_a_connection_reaches_its_limit_while_a_caller_waits() -> None:
    pool = FakePool(max_size=1, max_messages=1)
    with pool.hold() as connection:
        connection.session.messages = 1
        caller = Caller(pool)
        caller.ask()

    assert caller.session is pool.opened[1]
    caller.end()


def test_a_connection_is_closed_before_its_slot_is_free() -> None:
    pool = FakePool(max_size=1, max_messages=1)
    with callers(pool, 20) as threads:
        for thread in threads:
            thread.session.messages = 1
            assert len(pool.alive) == 1
            thread.leave.set()


def test_the_oldest_of_too_many_idle_connections_are_closed_as_surplus() -> None:
    pool = FakePool()
    sessions = pool.keep_idle(3, apart=1)
    taken: list[Any] = []

    pool.take_expired(taken, kept_before=pool.take_expired([])[1])

    assert [request.connection.session for request in taken] == sessions[:2]
    assert {request.close_reason for request in taken} == {CloseReason.SURPLUS}
    assert pool.stats()["idle"] == 1


# Tests of idle connections.


def test_a_connection_that_is_dead_is_replaced() -> None:
    pool = FakePool()
    (dead,) = pool.keep_idle(1)
    dead.healthy = False

    assert pool.use() is not dead
    assert dead.closed
    assert not dead.said_quit
    assert closed(pool) == {"stale": 1}


def test_the_next_idle_one_is_tried_before_a_new_one_is_opened() -> None:
    pool = FakePool()
    good, *dead = pool.keep_idle(4)
    for session in dead:
        session.healthy = False

    assert pool.use() is good
    assert len(pool.opened) == 4


@pytest.mark.parametrize(
    ("ping_after", "idle", "pings"),
    [(20, 19.9, 0), (20, 20, 1), (0, 0, 1), (None, 44, 0)],
)
def test_a_connection_is_pinged_after_so_many_idle_seconds(
    ping_after: float | None, idle: float, pings: int
) -> None:
    pool = FakePool(ping_after=ping_after)
    (session,) = pool.keep_idle(1)
    pool.now += idle

    assert pool.use() is session
    assert session.pings == [PING_TIMEOUT] * pings
    assert pool.stats()["pings"] == pings


def test_a_connection_that_is_visibly_dead_is_not_pinged() -> None:
    pool = FakePool(ping_after=0)
    (dead,) = pool.keep_idle(1)
    dead.healthy = False

    pool.use()
    assert dead.pings == []


def test_a_ping_takes_no_longer_than_the_pools_timeout() -> None:
    pool = FakePool(ping_after=0, timeout=3)
    (session,) = pool.keep_idle(1)

    pool.use()
    assert session.pings == [3]


def test_after_one_unanswered_ping_those_that_idled_longer_are_dropped() -> None:
    pool = FakePool(ping_after=0)
    older = pool.keep_idle(3, apart=1)
    older[-1].answer = lambda: False

    assert pool.use() is pool.opened[3]
    assert [len(session.pings) for session in older] == [0, 0, 1]
    assert all(session.closed and not session.said_quit for session in older)
    assert closed(pool) == {"stale": 3}


def test_after_one_unanswered_ping_those_that_came_back_meanwhile_are_kept() -> None:
    pool = FakePool(ping_after=0)
    (mute,) = pool.keep_idle(1)
    with ExitStack() as held:
        meanwhile = held.enter_context(pool.hold(force_new=True))

        def give_back_and_say_nothing() -> bool:
            pool.now += 1
            held.close()
            return False

        mute.answer = give_back_and_say_nothing
        with pool.hold() as connection:
            # No other ping: it would take its time as well.
            assert connection.session is pool.opened[2]
    assert pool.use() is connection.session
    assert not meanwhile.session.closed


def test_an_interrupted_ping_closes_the_connection() -> None:
    pool = FakePool(ping_after=0)
    (session,) = pool.keep_idle(1)
    session.answer = interrupt

    with pytest.raises(Interrupt), pool.hold():
        pass
    assert session.closed
    assert pool.empty
    assert closed(pool) == {"error": 1}


def test_an_interrupted_quit_still_closes_all_and_frees_their_slots() -> None:
    pool = FakePool(max_size=3)
    expired = pool.keep_idle(2)
    expired[0].on_quit = interrupt
    pool.now += 1000

    with pytest.raises(Interrupt), pool.hold():
        pass
    assert all(session.closed for session in expired)
    assert pool.size == pool.stats()["idle"] == 1


def test_an_interrupted_quit_of_one_that_is_replaced_frees_its_slot() -> None:
    pool = FakePool(max_size=1)
    (replaced,) = pool.keep_idle(1)
    replaced.on_quit = interrupt

    with pytest.raises(Interrupt), pool.hold(force_new=True):
        pass
    assert replaced.closed
    assert pool.empty


# Waiting.


def test_a_caller_waits_for_a_connection_to_come_back() -> None:
    pool = FakePool(max_size=1)
    with pool.hold() as connection:
        caller = Caller(pool)
        caller.ask()
        assert pool.stats()["waiting"] == 1
        assert not pool.empty
    assert caller.session is connection.session
    assert pool.stats()["waits"] == 1
    caller.end()


def test_a_caller_waits_for_a_slot_to_open_one() -> None:
    pool = FakePool(max_size=2)
    with pool.hold(), pool.hold() as connection:
        caller = Caller(pool)
        caller.ask()
        connection.session.in_step = False
    assert caller.session is pool.opened[2]
    caller.end()


def test_callers_are_served_in_the_order_of_their_arrival() -> None:
    pool = FakePool(max_size=1)
    with callers(pool, 6) as threads:
        for number, caller in enumerate(threads):
            assert caller.session is pool.opened[0]
            assert not any(later.arrived.is_set() for later in threads[number + 1 :])
            caller.end()


def test_who_returns_a_connection_and_asks_again_stands_behind_who_waits() -> None:
    pool = FakePool(max_size=1)
    caller = Caller(pool)
    with pool.hold():
        caller.ask()
    with pytest.raises(PoolTimeout), pool.hold(seconds=0):
        pass
    assert caller.session is pool.opened[0]
    caller.end()


def test_a_caller_waits_no_longer_than_the_timeout() -> None:
    pool = FakePool(max_size=1, timeout=0.01)

    with (
        pool.hold(),
        pytest.raises(PoolTimeout, match=r"no connection to relay\.test .* 0\.01 s"),
        pool.hold(),
    ):
        pass
    assert pool.stats()["timeouts"] == 1
    assert pool.stats()["waiting"] == 0


def test_a_caller_with_less_time_waits_less() -> None:
    pool = FakePool(max_size=1, timeout=1000)

    with pool.hold(), pytest.raises(PoolTimeout), pool.hold(seconds=0):
        pass


def test_the_time_spent_waiting_is_counted() -> None:
    pool = FakePool(max_size=1)
    with pool.hold():
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
            pool.hold(),
        ):
            pass
        assert pool.stats()["waiting"] == 2
        assert pool.stats()["timeouts"] == 1
        threads[0].leave.set()
        assert threads[1].session is pool.opened[0]


@pytest.mark.parametrize(
    ("options", "others"),
    [({"timeout": 0.001}, 1), ({"max_waiting": 1, "timeout": 3600}, 2)],
)
def test_the_timeout_and_the_length_of_the_queue_can_be_ignored(
    options: dict[str, Any], others: int
) -> None:
    pool = FakePool(max_size=1, **options)
    with callers(pool, others) as threads:

        def leave() -> None:
            while pool.stats()["waiting"] < others:
                threads[0].join(0.001)
            for thread in threads:
                thread.leave.set()

        helper = threading.Thread(target=leave)
        helper.start()
        with pool.hold(ignore_pool_timeout=True):
            helper.join(30)
    assert pool.stats()["timeouts"] == 0


def test_a_slot_that_comes_back_after_a_wait_timed_out_is_not_lost() -> None:
    pool = FakePool(max_size=1, timeout=0.001)
    with pool.hold() as connection:
        for _ in range(3):
            with pytest.raises(PoolTimeout), pool.hold():
                pass

    assert pool.use() is connection.session


# Closing.


def test_a_closed_pool_returns_what_was_idle_and_keeps_nothing() -> None:
    pool = FakePool()
    idle = pool.keep_idle(2)

    with pool.hold() as connection:
        assert pool.close() == idle[:1]
        closed_in_use = connection.session.closed
    assert (closed_in_use, connection.session.closed) == (False, True)
    assert connection.session.said_quit
    assert closed(pool) == {"shutdown": 2}
    assert pool.size == 0
    assert " shutdown " in repr(pool)


def test_closing_twice_is_harmless() -> None:
    pool = FakePool()
    pool.keep_idle(1)

    assert len(pool.close()) == 1
    assert pool.close() == []
    assert closed(pool) == {"shutdown": 1}


def test_who_waits_when_the_pool_is_closed_gets_an_error() -> None:
    pool = FakePool(max_size=1)
    with pool.hold(), callers(pool, 2) as waiting:
        pool.close()
        for caller in waiting:
            assert caller.arrived.wait(30)
            assert isinstance(caller.error, PoolClosed)
            assert "nothing was sent; send it again" in str(caller.error)
    assert pool.empty


def test_who_got_hold_of_a_pool_just_before_it_was_closed_is_served() -> None:
    pool = FakePool()
    pool.close()

    assert pool.use().closed


def test_the_statistics_of_another_pool_can_be_added() -> None:
    pool, other = FakePool(), FakePool(max_messages=1)
    for _ in range(2):
        with other.hold() as connection:
            connection.session.messages = 1
    other.count("retries")

    pool.absorb(other.stats())

    assert pool.stats() == other.stats()


# Forks, played in one process.


def test_a_child_closes_what_is_idle_and_in_use_without_quit() -> None:
    pool = FakePool()
    pool.keep_idle(2)
    with pool.hold():
        pool.reset_after_fork()
    assert all(session.closed and not session.said_quit for session in pool.opened)
    assert pool.empty
    assert pool.use().closed


def test_a_child_does_not_wait_for_a_lock_that_nobody_will_release() -> None:
    pool = FakePool()
    pool.keep_idle(1)
    pool.slots.lock.acquire()

    pool.reset_after_fork()

    assert pool.empty


# The log.


@pytest.mark.parametrize(
    ("reason", "level"),
    [(CloseReason.REFUSED, "INFO"), (CloseReason.LIFETIME, "DEBUG")],
)
def test_the_log_tells_which_connections_were_closed_and_why(
    reason: CloseReason, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "django_lettermint")
    pool = FakePool()
    with pool.hold() as connection:
        connection.discard(reason)

    assert caplog.record_tuples == [
        (
            "django_lettermint",
            logging.getLevelNamesMapping()[level],
            f"relay.test: a connection was closed ({reason})",
        )
    ]


def test_the_log_tells_of_the_relays_limit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "django_lettermint")
    pool = FakePool()
    (idle,) = pool.keep_idle(1)
    LimitedRelay(pool, 1)

    with pool.hold(force_new=True) as connection:
        assert connection.session is idle
    assert caplog.messages == [
        "relay.test: the relay refused another connection, 1 at once are used for now"
    ]
