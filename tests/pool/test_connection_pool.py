"""The pool without a network and without real time."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import Any, NoReturn

import pytest

from django_lettermint.exceptions import ConnectFailed, PoolClosed, PoolTimeout
from django_lettermint.pool import CloseReason, PooledConnection
from django_lettermint.pool.connection import (
    ASSUMED_LIMIT_SECONDS,
    LIFETIME_JITTER,
    QUIT_TIMEOUT,
    RELAY_LIMIT_SECONDS,
    PoolRequest,
    RequestState,
)
from django_lettermint.pool.connection_pool import PING_TIMEOUT
from django_lettermint.pool.stats import no_stats
from tests.pool.fakes import (
    Caller,
    FakePool,
    FakeSession,
    Interrupt,
    callers,
    interrupt,
    too_many_connections,
)

# -- leasing ---------------------------------------------------------------------------


def test_a_connection_is_opened_when_asked_for_and_leased_again() -> None:
    pool = FakePool()
    assert pool.empty
    with pool.hold() as connection:
        assert not connection.reused
        assert pool.calls == [(pool.now + 3600, 30)]
    with pool.hold() as again:
        assert again is connection
        assert again.reused

    changed = {"size": 1, "idle": 1, "requests": 2, "opened": 1, "reused": 1}
    assert pool.stats() == {**no_stats(), **changed}


@pytest.mark.parametrize(
    ("in_step", "discarded", "seconds", "reason", "quit_is_sent", "level"),
    [
        (False, None, 1, CloseReason.ERROR, False, "INFO"),
        (True, CloseReason.REFUSED, 1, CloseReason.REFUSED, True, "INFO"),
        (False, CloseReason.REFUSED, 1, CloseReason.REFUSED, False, "INFO"),
        (True, None, 300, CloseReason.LIFETIME, True, "DEBUG"),
    ],
)
def test_a_connection_that_cannot_be_kept_is_closed_counted_and_logged(
    *,
    in_step: bool,
    discarded: CloseReason | None,
    seconds: float,
    reason: CloseReason,
    quit_is_sent: bool,
    level: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "django_lettermint")
    pool = FakePool(max_lifetime=300)
    with pool.hold() as connection:
        pool.now += seconds
        connection.session.in_step = in_step
        if discarded:
            connection.discard(discarded)

    assert connection.session.closed
    assert connection.session.sent_quit is quit_is_sent
    assert pool.reasons == {reason.value: 1}
    assert pool.empty
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        (level, f"relay.test: a connection was closed ({reason})")
    ]


@pytest.mark.parametrize(("max_size", "replaced"), [(3, 0), (2, 1)])
def test_a_new_connection_replaces_the_oldest_idle_one_if_the_pool_is_full(
    max_size: int, replaced: int
) -> None:
    pool = FakePool(max_size=max_size)
    idle = pool.keep_idle(2)

    with pool.hold(force_new=True) as connection:
        assert connection.session is pool.opened[2]
        assert pool.size == max_size
        assert [each for each in idle if each.closed] == idle[:replaced]
    assert pool.reasons == ({"replaced": 1} if replaced else {})
    assert (pool.stats()["opened"], pool.stats()["reused"]) == (3, 0)


def test_messages_and_resets_are_counted_also_in_total_with_another_pool() -> None:
    pool, other = FakePool(max_messages=5), FakePool(max_messages=5)
    for each in (pool, other):
        with each.hold() as connection:
            connection.session.messages += 3
            connection.session.needs_rset = True
            assert each.stats()["messages"] == 3
        with each.hold() as connection:
            connection.session.messages += 2
        each.count("retries")

    pool.absorb(other.stats())
    total = pool.stats()
    assert total["closed"] == {"messages": 2}
    assert (total["messages"], total["opened"], total["requests"]) == (10, 2, 4)
    assert (total["resets"], total["retries"]) == (2, 2)


@pytest.mark.parametrize("error", [OSError, Interrupt])
def test_a_connection_that_cannot_be_opened_leaves_its_slot_to_the_next(
    error: type[BaseException],
) -> None:
    pool = FakePool(max_size=1, timeout=30)
    caller = Caller(pool)

    def fail() -> None:
        pool.before_connect = lambda: None
        caller.ask()  # waits, as opening takes a slot
        raise error

    pool.before_connect = fail
    with pytest.raises(error), pool.hold():
        pass
    assert caller.session in pool.alive
    caller.end()
    assert (pool.stats()["waits"], pool.stats()["open_errors"]) == (1, 1)


# -- the relay's limit of connections --------------------------------------------------


def refuse(pool: FakePool, code: int = 421) -> None:
    """Have the relay refuse further connections."""

    def greet() -> NoReturn:
        raise too_many_connections(code)

    pool.before_connect = greet


def test_a_refused_caller_takes_an_idle_connection_even_if_it_asked_for_a_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "django_lettermint")
    pool = FakePool(max_size=4)
    (idle,) = pool.keep_idle(1)
    refuse(pool)

    with pool.hold(force_new=True) as connection:
        assert connection.session is idle
    assert caplog.messages == [
        "relay.test: the relay refused another connection, 1 at once are used for now"
    ]


@pytest.mark.parametrize(("code", "others"), [(421, 0), (554, 1)])
def test_a_refusal_is_raised_if_it_is_permanent_or_nothing_else_is_open(
    code: int, others: int
) -> None:
    pool = FakePool()
    pool.keep_idle(others)
    refuse(pool, code)

    with pytest.raises(ConnectFailed, match=str(code)), pool.hold(force_new=True):
        pass
    assert pool.size == others


def requests(pool: FakePool, count: int) -> list[PoolRequest[FakeSession]]:
    """Have requests come to the slots of a pool; none of them has a connection yet."""
    made = []
    for _ in range(count):
        made.append(PoolRequest(pool=pool, number=pool.stats()["requests"]))
        pool.slots.enter(made[-1])
    return made


def open_for(pool: FakePool, *several: PoolRequest[FakeSession]) -> None:
    """Note connections that were opened for requests."""
    for request in several:
        connection = PooledConnection.for_session(FakeSession(), pool.config, pool.now)
        pool.slots.note_opened(request, connection)


def test_a_refused_request_is_served_before_those_that_came_later() -> None:
    pool = FakePool(max_size=2)
    holder, early, late = requests(pool, 3)
    open_for(pool, holder)

    assert pool.slots.wait_for_others(early) is RequestState.WAITING
    pool.slots.release(holder)
    assert pool.slots.busy == {early}
    assert pool.slots.waiting == [late]


def test_a_relay_that_refuses_all_connections_at_once_shows_no_limit() -> None:
    pool = FakePool(max_size=4)
    slots, ended = pool.slots, 0
    requests(pool, 4)
    while slots.busy:
        request = min(slots.busy, key=lambda each: each.number)
        if slots.wait_for_others(request) is RequestState.ENDED:
            slots.release(request)
            ended += 1
    assert ended == 4
    assert pool.empty

    first, *_ = requests(pool, 4)
    open_for(pool, first)
    assert len(slots.busy) == 4


def test_a_refusal_while_others_are_being_opened_is_remembered_for_a_second() -> None:
    pool = FakePool(max_size=4)
    first, second, third = requests(pool, 3)

    assert pool.slots.wait_for_others(second) is RequestState.WAITING
    open_for(pool, first, third)
    pool.now += ASSUMED_LIMIT_SECONDS - 0.1
    (fourth,) = requests(pool, 1)
    assert pool.slots.waiting == [second, fourth]
    pool.now += 0.1
    assert pool.slots.recheck(second, pool.now, last=False) is RequestState.BUSY
    assert pool.slots.waiting == [fourth]
    # The limit was wrong: the fourth does not wait any longer.
    open_for(pool, second)
    assert fourth in pool.slots.busy


def test_after_three_minutes_one_connection_more_than_the_limit_is_tried() -> None:
    pool = FakePool(max_size=4)
    one, two, three = requests(pool, 3)
    open_for(pool, one, two)
    for _ in range(2):
        assert pool.slots.wait_for_others(three) is RequestState.WAITING
        pool.now += RELAY_LIMIT_SECONDS - 1
        assert pool.slots.recheck(three, pool.now, last=False) is RequestState.WAITING
        pool.now += 1
        assert pool.slots.recheck(three, pool.now, last=False) is RequestState.BUSY


@pytest.mark.parametrize("others", [1, 2])
def test_a_connection_that_the_relay_does_not_serve_lowers_the_limit(
    others: int,
) -> None:
    pool = FakePool(max_size=4)
    with callers(pool, others):
        with pool.hold() as last:
            last.discard(CloseReason.LIMITED)
        assert pool.slots.capacity() == others
        pool.now += RELAY_LIMIT_SECONDS
        assert pool.slots.capacity() == others + 1


def test_no_further_connection_is_opened_on_request_if_any_is_open() -> None:
    pool = FakePool(max_size=4)
    requests(pool, 1)  # one is being opened, none is open
    assert not pool.limit_to_open()
    assert pool.slots.capacity() == 4

    pool.keep_idle(1)
    with pool.hold(force_new=True):
        assert pool.limit_to_open()
        assert pool.slots.capacity() == 2
    pool.now += RELAY_LIMIT_SECONDS
    assert pool.slots.capacity() == 3


# -- limits of connections -------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "options"),
    [("idle", {"max_idle": 45}), ("lifetime", {"max_lifetime": 45})],
)
def test_expired_connections_are_closed_after_the_next_mail(
    reason: str, options: dict[str, Any]
) -> None:
    pool = FakePool(**options)
    dead, *healthy = idle = pool.keep_idle(4)
    dead.healthy = False
    order: list[str | float] = []
    sizes: list[int] = []
    for session in healthy:
        session.ending = order
        session.on_quit = lambda: sizes.append(pool.size)
    pool.now += 45
    began = time.monotonic()
    with pool.hold() as connection:
        assert connection.session not in idle
        assert not any(session.closed for session in idle)

    assert (pool.reasons, dead.ending) == ({reason: 4}, [])
    # QUIT is sent on all before the replies are awaited, until the same moment.
    assert order[:3] == ["quit"] * 3
    (until,) = set(order[3:])
    assert isinstance(until, float)
    assert began < until <= time.monotonic() + QUIT_TIMEOUT
    # They keep their slots, so that the server never sees more than `max_size`.
    assert sizes == [5, 5, 5]


def test_lifetimes_are_shortened_at_random() -> None:
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

    assert pool.opened[0].messages == (limit or 5)
    assert pool.reasons == ({"messages": 5 // limit} if limit else {})


# -- tests of idle connections ---------------------------------------------------------


def test_dead_connections_are_replaced_by_the_next_idle_one_or_a_new_one() -> None:
    pool = FakePool(ping_after=0)
    good, *dead = pool.keep_idle(4)
    for session in dead:
        session.healthy = False

    assert pool.use() is good
    assert all(session.closed and not session.ending for session in dead)
    assert not any(session.pings for session in dead)
    assert pool.reasons == {"stale": 3}
    assert pool.stats()["reused"] == 1

    good.healthy = False
    assert pool.use() is pool.opened[4]


@pytest.mark.parametrize(
    ("ping_after", "timeout", "idle", "pings"),
    [
        (20, 10, 19.9, []),
        (20, 10, 20, [PING_TIMEOUT]),
        (0, 10, 0, [PING_TIMEOUT]),
        (0, 3, 0, [3]),
        (None, 10, 44.9, []),
    ],
)
def test_a_connection_is_pinged_after_so_many_idle_seconds(
    ping_after: float | None, timeout: float, idle: float, pings: list[float]
) -> None:
    pool = FakePool(ping_after=ping_after, timeout=timeout, max_idle=45)
    (session,) = pool.keep_idle(1)
    pool.now += idle

    assert pool.use() is session
    assert session.pings == pings
    assert pool.stats()["pings"] == len(pings)


def test_after_an_unanswered_ping_older_connections_are_closed_and_newer_kept() -> None:
    pool = FakePool(ping_after=0)
    *older, mute = pool.keep_idle(3, apart=1)
    with ExitStack() as held:
        newer = held.enter_context(pool.hold(force_new=True))

        def give_back_the_newer_one() -> bool:
            pool.now += 1
            held.close()
            return False

        mute.answer = give_back_the_newer_one
        with pool.hold() as connection:
            # A second ping would take its time as well.
            assert connection.session is pool.opened[4]
    assert not newer.session.closed
    assert all(each.closed and not each.sent_quit for each in (*older, mute))
    assert not any(each.pings for each in (*older, newer.session))
    assert pool.reasons == {"stale": 3}


# -- interrupts ------------------------------------------------------------------------


def test_an_interrupted_ping_closes_the_connection() -> None:
    pool = FakePool(ping_after=0)
    (session,) = pool.keep_idle(1)
    session.answer = interrupt

    with pytest.raises(Interrupt), pool.hold():
        pass
    assert session.closed
    assert pool.empty
    assert pool.reasons == {"error": 1}


@pytest.mark.parametrize(("seconds", "kept"), [(1000, 1), (0, 0)])
def test_an_interrupted_quit_closes_all_and_frees_their_slots(
    seconds: float, kept: int
) -> None:
    pool = FakePool(max_size=2 + kept)
    sessions = pool.keep_idle(2)
    sessions[0].on_quit = interrupt
    pool.now += seconds  # those that have not expired are replaced

    with pytest.raises(Interrupt), pool.hold(force_new=True):
        pass
    assert sessions[0].closed
    assert pool.size == len(pool.alive) == 1
    assert pool.stats()["in_use"] == 0


@pytest.mark.parametrize(
    ("answer", "owner", "name"),
    [(False, FakePool, "free"), (True, FakeSession, "needs_rset")],
)
def test_an_interrupt_while_connections_are_closed_or_kept_loses_no_slot(
    answer: Any, owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = FakePool(max_size=3, ping_after=0)
    pool.keep_idle(3, apart=1)[-1].answer = lambda: answer

    def interrupt_once(_: object) -> NoReturn:
        monkeypatch.undo()
        raise Interrupt

    monkeypatch.setattr(owner, name, property(interrupt_once), raising=False)
    with pytest.raises(Interrupt), pool.hold():
        pass
    assert pool.size == pool.stats()["idle"] == len(pool.alive) == 3 * answer


# -- waiting ---------------------------------------------------------------------------


def test_callers_are_served_in_the_order_of_their_arrival() -> None:
    pool = FakePool(max_size=1)
    with callers(pool, 6) as threads:
        assert pool.stats()["waiting"] == 5
        for number, caller in enumerate(threads):
            assert caller.session is pool.opened[0]
            assert not any(later.arrived.is_set() for later in threads[number + 1 :])
            pool.now += 0.5
            caller.end()
    assert pool.stats()["waits"] == 5
    assert pool.stats()["wait_seconds"] == 0.5 * (1 + 2 + 3 + 4 + 5)


@pytest.mark.parametrize(("timeout", "seconds"), [(0.01, 3600), (1000, 0.01)])
def test_a_caller_waits_no_longer_than_the_timeout_and_its_own_time(
    timeout: float, seconds: float
) -> None:
    pool = FakePool(max_size=1, timeout=timeout)
    with pool.hold() as connection:
        with (
            pytest.raises(
                PoolTimeout,
                match=r"no connection to relay\.test became free in 0\.01 s, all 1 are",
            ),
            pool.hold(seconds),
        ):
            pass
        assert (pool.stats()["timeouts"], pool.stats()["waiting"]) == (1, 0)
    # The slot came back after the wait was over.
    assert pool.use() is connection.session


def test_so_many_callers_may_wait_and_no_more() -> None:
    pool = FakePool(max_size=1, max_waiting=2)
    full = r"queue .* is full, 2 long .* max_waiting"
    with callers(pool, 3) as threads:
        with pytest.raises(PoolTimeout, match=full), pool.hold():
            pass
        assert pool.stats()["waiting"] == 2
        assert (pool.stats()["timeouts"], pool.stats()["waits"]) == (1, 2)
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


# -- closing ---------------------------------------------------------------------------


def test_a_closed_pool_returns_what_was_idle_and_keeps_nothing() -> None:
    pool = FakePool(max_size=3)
    idle = pool.keep_idle(2)
    with pool.hold() as connection:
        assert repr(pool) == (
            "<ConnectionPool relay.test idle=1 in_use=1 waiting=0 max_size=3>"
        )
        # The one that came back last is leased first.
        assert pool.close() == idle[:1]
        assert pool.close() == []
        assert pool.alive == idle
    assert pool.alive == idle[:1]
    assert connection.session.sent_quit
    assert pool.reasons == {"shutdown": 2}
    assert pool.empty
    assert " shutdown " in repr(pool)
    # A caller that got the pool just before is served.
    assert pool.use().closed


def test_callers_that_wait_when_the_pool_is_closed_get_an_error() -> None:
    pool = FakePool(max_size=1)
    with pool.hold(), callers(pool, 2) as waiting:
        pool.close()
        for caller in waiting:
            assert caller.arrived.wait(30)
            assert isinstance(caller.error, PoolClosed)
            assert "nothing was sent; send it again" in str(caller.error)
    assert pool.empty
