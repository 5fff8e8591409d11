"""The process's pools: found again, shared, forgotten, watched, closed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from django.test import override_settings

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import PoolConfig, RelayConfig, backend_config
from django_lettermint.exceptions import DeliveryUnknown, PoolClosed
from django_lettermint.pool import (
    ConnectionPool,
    PoolReport,
    close_pools,
    get_pool,
    get_stats,
    open_pool,
)
from django_lettermint.pool.connection import QUIT_TIMEOUT
from django_lettermint.pool.registry import MAX_IDLE, MAX_POOLS
from django_lettermint.smtp import RelayState, connect
from django_lettermint.testing import Relay
from tests.faultserver import TOKEN, FaultServer, On, hang
from tests.programs import output
from tests.sending import SHORT, backend, mail, mails, spoken

HOUR = 3600


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Run a server that is quick to connect to: plaintext."""
    with FaultServer(tls=None) as running:
        yield running


def config(server: FaultServer, **options: Any) -> RelayConfig:
    return backend_config(server.options(**options)).relay


def pool_of(relay: RelayConfig) -> ConnectionPool[Any]:
    return get_pool(relay.endpoint)


def tenants(server: FaultServer, count: int, **options: Any) -> list[RelayConfig]:
    """Return many configurations for the same server, with a pool each."""
    first = config(server, **options)
    return [
        replace(
            first,
            endpoint=replace(
                first.endpoint, local_hostname=f"tenant{number}.example.org"
            ),
        )
        for number in range(count)
    ]


def touch(relay: RelayConfig) -> None:
    """Have a connection opened, or proven alive, and kept idle."""
    with pool.lease(relay, seconds=30):
        pass


@contextmanager
def held(relay: RelayConfig) -> Iterator[None]:
    """Have another thread hold a connection."""
    ready, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.lease(relay, seconds=30):
            ready.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        leave.set()
        thread.join(30)


# Which pool.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timeout": 3},
        {"final_reply_timeout": 3},
        {"deadline": 3},
        {"retries": 0},
        {"batch_connections": 2},
        {"pipelining": False},
        {"send_defaults": {"route": "news"}},
    ],
)
def test_mailers_that_do_not_differ_in_their_connections_share_a_pool(
    server: FaultServer, options: dict[str, Any]
) -> None:
    backend(server).send_messages([mail()])
    backend(server, **options).send_messages([mail()])

    assert server.connections == 1
    assert len(get_stats()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"api_token": "another"},
        {"username": "another"},
        {"pool": {"max_size": 2}},
        {"pool": False},
        {"local_hostname": "another.example.org"},
    ],
)
def test_mailers_that_differ_in_their_connections_have_pools_of_their_own(
    server: FaultServer, options: dict[str, Any]
) -> None:
    first = pool_of(config(server))

    assert pool_of(config(server, **options)) is not first


def test_each_mailer_has_its_own_timeouts_on_a_shared_connection() -> None:
    script = [On("dot", hang(), message=2)]
    with FaultServer(script, tls=None) as server:
        backend(server).send_messages([mail()])
        hasty = backend(server, final_reply_timeout=SHORT, idempotency=False)
        with pytest.raises(DeliveryUnknown):
            hasty.send_messages([mail()])

        assert server.connections == 1


def test_the_timeout_of_a_health_check_opens_no_connection_of_its_own(
    server: FaultServer,
) -> None:
    sender = backend(server)
    sender.send_messages([mail()])
    check = backend(server)
    check.timeout = 2.0

    assert check.open() is False
    assert server.connections == 1


def test_a_pool_that_is_asked_for_opens_nothing(server: FaultServer) -> None:
    assert pool_of(config(server)).empty
    assert server.connections == 0


def test_two_tokens_never_share_a_connection() -> None:
    with Relay(token="one", other_tokens=["two"]) as relay:
        for token in ("one", "two", "one", "two"):
            sender = EmailBackend(**relay.options(api_token=token))
            sender.send_messages([mail()])
        users = {(each.connection, each.token) for each in relay.messages}

    assert users == {(1, "one"), (2, "two")}


def test_a_rotated_token_is_used_from_the_next_mail_on() -> None:
    with Relay(token="old", other_tokens=["new"]) as relay:
        for token in ("old", "new"):
            with override_settings(ANYMAIL=relay.settings(api_token=token)):
                EmailBackend().send_messages([mail()])

        assert [each.token for each in relay.messages] == ["old", "new"]


# Without a pool.


def test_without_a_pool_each_call_has_one_connection_however_long_the_list() -> None:
    with FaultServer(tls=None) as server:
        sender = backend(server, pool=False)
        for _ in range(2):
            assert sender.send_messages(mails(60)) == 60

        assert [each.connection for each in server.deliveries] == [1] * 60 + [2] * 60
        assert server.wait_for(lambda: server.open_connections == 0)
        assert spoken(server).count("QUIT") == 2


def test_without_a_pool_a_call_has_as_many_connections_as_it_may(
    server: FaultServer,
) -> None:
    sender = backend(server, pool=False, batch_connections=2)

    assert sender.send_messages(mails(60)) == 60
    assert server.connections <= 2
    assert server.wait_for(lambda: server.open_connections == 0)


def test_the_statistics_know_of_connections_without_a_pool(server: FaultServer) -> None:
    sender = backend(server, pool=False)
    for _ in range(2):
        sender.send_messages(mails(3))

    (report,) = get_stats()
    assert report["size"] == 0
    assert (report["opened"], report["messages"], report["requests"]) == (2, 6, 2)
    assert report["closed"] == {"unpooled": 2}


def test_a_connection_without_a_pool_is_closed_though_the_call_fails(
    server: FaultServer,
) -> None:
    with (
        pytest.raises(RuntimeError),
        open_pool(config(server, pool=False)) as private,
        private.lease(seconds=30, timeout=30),
    ):
        raise RuntimeError
    assert server.wait_for(lambda: server.open_connections == 0)


# Statistics.


def test_the_statistics_say_whose_they_are_and_what_happened(
    server: FaultServer,
) -> None:
    sender = backend(server)
    sender.send_messages([mail(), mail()])
    sender.send_messages([mail()])

    (report,) = get_stats()
    assert report.pop("digest").isalnum()  # type: ignore[misc]
    assert report == {
        "host": "127.0.0.1",
        "port": server.port,
        "username": "lettermint",
        "tenant": None,
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
        "messages": 3,
        "retries": 0,
        "resets": 0,
        "pings": 0,
        "closed": {},
    }


def test_the_statistics_have_the_fields_of_their_type(server: FaultServer) -> None:
    touch(config(server))

    assert set(get_stats()[0]) == set(get_type_hints(PoolReport))


def test_the_statistics_outlive_the_connections(server: FaultServer) -> None:
    sender = backend(server, pool={"max_messages": 1})
    for _ in range(3):
        sender.send_messages([mail()])

    (report,) = get_stats()
    assert report["size"] == 0
    assert report["opened"] == report["messages"] == 3
    assert report["closed"] == {"messages": 3}


def test_the_digest_tells_tokens_apart_and_tells_no_token(server: FaultServer) -> None:
    pools = [pool_of(config(server, api_token=token)) for token in (TOKEN, "another")]
    digests = {report["digest"] for report in get_stats()}

    assert len(digests) == 2
    assert TOKEN not in f"{get_stats()}{pools}"
    assert {pool.name[-9:-1] for pool in pools} == digests


def test_nobody_is_disturbed_by_statistics(server: FaultServer) -> None:
    with held(config(server)):
        assert get_stats()[0]["in_use"] == 1
    assert get_stats()[0]["in_use"] == 0


# Many pools.


def test_idle_connections_of_all_pools_are_capped_and_the_oldest_go_first(
    server: FaultServer,
) -> None:
    many = tenants(server, MAX_IDLE + 6)
    for each in many:
        touch(each)

    assert server.wait_for(lambda: server.open_connections == MAX_IDLE)
    assert sum(report["idle"] for report in get_stats()) == MAX_IDLE
    for each in many[6:]:
        touch(each)
    assert server.connections == len(many)


def test_an_expired_connection_of_another_pool_is_closed_in_passing(
    server: FaultServer,
) -> None:
    touch(config(server, pool={"max_idle": 1e-9}))
    touch(config(server))

    assert server.wait_for(lambda: server.open_connections == 1)


def test_expired_connections_of_any_pool_delay_a_mail_by_fifty_milliseconds() -> None:
    with FaultServer([On("quit", hang())], tls=None) as server:
        relay, now = config(server), 1000.0
        others = ConnectionPool(
            lambda _, timeout: connect(
                relay.endpoint,
                RelayState(),
                until=time.monotonic() + timeout,
                timeout=timeout,
            ),
            PoolConfig(max_size=20),
            lambda: now,
        )
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(others.lease(seconds=30, timeout=30))
        now += HOUR
        began = time.monotonic()
        with others.lease(seconds=30, timeout=30):
            pass

        assert time.monotonic() - began < 10 * QUIT_TIMEOUT
        for session in others.close():
            session.close()
        assert server.wait_for(lambda: spoken(server).count("QUIT") == 20)


def test_the_oldest_of_too_many_delays_a_mail_by_fifty_milliseconds() -> None:
    with FaultServer([On("quit", hang())], tls=None) as server:
        *many, last = tenants(server, MAX_IDLE + 1)
        for each in many:
            touch(each)
        began = time.monotonic()
        touch(last)

        assert time.monotonic() - began < 10 * QUIT_TIMEOUT
        assert server.wait_for(lambda: spoken(server).count("QUIT") == 1)


@pytest.mark.slow
def test_two_thousand_configurations_leave_no_sockets_and_no_memory(
    server: FaultServer,
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    for each in tenants(server, 2000):
        touch(each)
        alive.add(pool_of(each))

    gc.collect()
    assert server.connections == 2000
    assert server.peak_connections <= MAX_IDLE + 2
    assert len(get_stats()) <= MAX_POOLS + 1
    assert len(alive) <= MAX_POOLS + 1


def test_a_pool_that_holds_nothing_is_forgotten_for_others(server: FaultServer) -> None:
    first, *others = tenants(server, MAX_POOLS + 1, pool=False)
    touch(first)
    digest = get_stats()[0]["digest"]
    for each in others:
        touch(each)

    assert len(get_stats()) == MAX_POOLS
    assert digest not in {report["digest"] for report in get_stats()}


def test_who_holds_a_forgotten_pool_is_served_and_it_keeps_nothing(
    server: FaultServer,
) -> None:
    first, *others = tenants(server, MAX_POOLS + 1)
    forgotten = pool_of(first)
    for each in others:
        pool_of(each)

    with forgotten.lease(seconds=30, timeout=30):
        assert pool_of(first) is not forgotten
    assert server.wait_for(lambda: server.open_connections == 0)


def test_a_pool_in_use_is_not_forgotten(server: FaultServer) -> None:
    with held(config(server)):
        before = pool_of(config(server))
        for each in tenants(server, MAX_POOLS + 1, pool=False):
            touch(each)
        assert pool_of(config(server)) is before


def test_a_failed_connection_leaves_nothing_behind() -> None:
    with FaultServer(tls=None) as gone:
        relay = config(gone)
    with pytest.raises(OSError, match="Nothing was sent"):
        touch(relay)

    assert get_stats()[0]["open_errors"] == 1
    assert get_stats()[0]["size"] == 0


# Closing.


def test_closing_says_quit_to_idle_connections(server: FaultServer) -> None:
    for each in tenants(server, 3):
        touch(each)
    close_pools()

    assert server.wait_for(lambda: server.open_connections == 0)
    assert spoken(server).count("QUIT") == 3
    assert get_stats() == []


def test_closing_takes_no_longer_than_its_timeout() -> None:
    with FaultServer([On("quit", hang())], tls=None) as server:
        for each in tenants(server, 10):
            touch(each)
        began = time.monotonic()
        close_pools(timeout=0.2)

        assert 0.2 <= time.monotonic() - began < 1
        assert server.wait_for(lambda: server.open_connections == 0)


def test_closing_without_time_closes_without_quit(server: FaultServer) -> None:
    touch(config(server))
    close_pools(timeout=0)

    assert server.wait_for(lambda: server.open_connections == 0)
    assert "QUIT" not in spoken(server)


def test_a_connection_in_use_lives_on_and_closes_when_it_comes_back(
    server: FaultServer,
) -> None:
    with held(config(server)):
        close_pools()
        assert server.open_connections == 1
    assert server.wait_for(lambda: server.open_connections == 0)


def test_who_waits_for_a_connection_that_never_comes_is_told(
    server: FaultServer,
) -> None:
    relay = config(server, pool={"max_size": 1, "timeout": HOUR})
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            touch(relay)
        except PoolClosed as error:
            errors.append(error)

    with held(relay):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not get_stats()[0]["waiting"]:
            waiter.join(0.001)
        close_pools()
        waiter.join(30)
    assert len(errors) == 1


def test_the_next_mail_opens_a_new_pool(server: FaultServer) -> None:
    sender = backend(server)
    sender.send_messages([mail()])
    before = pool_of(sender.config)
    close_pools()
    sender.send_messages([mail()])

    assert pool_of(sender.config) is not before
    assert get_stats()[0]["opened"] == 1
    assert len(server.deliveries) == 2


def test_closing_nothing_is_harmless() -> None:
    close_pools()
    close_pools()

    assert get_stats() == []


# Other systems.

WITHOUT_FORK = "import django, os; django.setup(); del os.register_at_fork\n"


def test_a_system_without_fork_can_send(server: FaultServer) -> None:
    output("send('bob@example.org')", server.options(), before=WITHOUT_FORK)

    assert server.delivered == {"bob@example.org": 1}
