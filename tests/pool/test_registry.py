"""The process's pools: which one a mail uses, how many there are, and how they close."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest

from django_lettermint import pool
from django_lettermint.pool import (
    PoolReport,
    close_pools,
    get_pool,
    get_stats,
    open_pool,
)
from django_lettermint.pool.registry import MAX_IDLE, MAX_POOLS
from tests.faultserver import TOKEN, FaultServer, On, hang
from tests.programs import output
from tests.sending import backend, mail, mails, spoken
from tests.sending import relay as config

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.pool.registry import RelayPool


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Run a server that is quick to connect to: without TLS."""
    with FaultServer(tls=None) as running:
        yield running


def pool_of(relay: RelayConfig) -> RelayPool:
    return get_pool(relay.endpoint)


def variants(server: FaultServer, count: int) -> list[RelayConfig]:
    """Return configurations for this server that have a pool each."""
    relay = config(server)
    endpoints = [
        replace(relay.endpoint, local_hostname=f"host{number}.example.org")
        for number in range(count)
    ]
    return [replace(relay, endpoint=endpoint) for endpoint in endpoints]


def touch(relay: RelayConfig) -> None:
    """Open a connection, or test it, and give it back."""
    with pool.lease(relay, seconds=30):
        pass


# -- which pool ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({"timeout": 3, "final_reply_timeout": 3, "deadline": 3}, True),
        ({"retries": 0, "batch_connections": 2, "pipelining": False}, True),
        ({"send_defaults": {"route": "news"}}, True),
        ({"api_token": "another"}, False),
        ({"username": "another"}, False),
        ({"pool": {"max_size": 2}}, False),
        ({"pool": False}, False),
        ({"local_hostname": "another.example.org"}, False),
    ],
    ids=str,
)
def test_mailers_that_connect_in_the_same_way_share_a_pool(
    server: FaultServer, options: dict[str, Any], shared: Any
) -> None:
    first = pool_of(config(server))

    assert (pool_of(config(server, **options)) is first) is shared
    assert pool_of(config(server)) is first
    assert first.empty


def test_a_timeout_set_on_the_backend_object_opens_no_further_connection(
    server: FaultServer,
) -> None:
    backend(server).send_messages([mail()])
    health_check = backend(server)
    health_check.timeout = 2.0

    assert health_check.open() is False
    assert server.connections == 1


# -- without a pool --------------------------------------------------------------------


@pytest.mark.parametrize(("batch_connections", "most"), [(None, 1), (2, 2)])
def test_without_a_pool_each_call_has_connections_of_its_own(
    server: FaultServer, batch_connections: int | None, most: int
) -> None:
    sender = backend(server, pool=False, batch_connections=batch_connections)
    for _ in range(2):
        assert sender.send_messages(mails(60)) == 60

    assert 2 <= server.connections <= 2 * most
    assert server.peak_connections <= most
    assert server.wait_for(lambda: server.open_connections == 0)
    assert spoken(server).count("QUIT") == server.connections
    (report,) = get_stats()
    assert (report["size"], report["messages"]) == (0, 120)
    assert report["closed"] == {"unpooled": server.connections}


def test_without_a_pool_a_failed_call_closes_its_connection(
    server: FaultServer,
) -> None:
    relay = config(server, pool=False)
    with open_pool(relay) as private:
        assert "max_size=1>" in repr(private)
    with pytest.raises(RuntimeError), pool.lease(relay, seconds=30):
        raise RuntimeError
    assert server.wait_for(lambda: server.open_connections == 0)


# -- statistics ------------------------------------------------------------------------


def test_statistics_have_an_endpoint_and_outlive_the_connections(
    server: FaultServer,
) -> None:
    backend(server, pool={"max_messages": 1}).send_messages(mails(3))

    (report,) = get_stats()
    assert set(report) == set(get_type_hints(PoolReport))
    assert (report["host"], report["port"]) == ("127.0.0.1", server.port)
    assert (report["username"], report["tenant"]) == ("lettermint", None)
    assert report["size"] == 0
    assert report["opened"] == report["messages"] == 3
    assert report["closed"] == {"messages": 3}


def test_the_digest_differs_by_token_and_does_not_reveal_it(
    server: FaultServer,
) -> None:
    pools = [pool_of(config(server, api_token=token)) for token in (TOKEN, "another")]
    digests = {report["digest"] for report in get_stats()}

    assert len(digests) == 2
    assert all(len(each) == 8 and each.isalnum() for each in digests)
    assert TOKEN not in f"{get_stats()}{pools}"
    assert {each.name for each in pools} == {
        f"127.0.0.1:{server.port} ({digest})" for digest in digests
    }


# -- many pools ------------------------------------------------------------------------


def test_beyond_64_idle_connections_in_all_pools_the_oldest_are_closed(
    server: FaultServer,
) -> None:
    many = variants(server, MAX_IDLE + 6)
    for each in many:
        touch(each)

    assert server.wait_for(lambda: server.open_connections == MAX_IDLE)
    assert sum(report["idle"] for report in get_stats()) == MAX_IDLE
    for each in many[6:]:
        touch(each)
    assert server.connections == len(many)


def test_the_expired_connections_of_any_pool_are_closed_after_a_mail(
    server: FaultServer,
) -> None:
    touch(config(server, pool={"max_idle": 1e-9}))
    touch(config(server))

    assert server.wait_for(lambda: server.open_connections == 1)


def test_a_pool_that_holds_nothing_is_forgotten_after_64_others(
    server: FaultServer,
) -> None:
    leased, empty, *others = variants(server, MAX_POOLS + 2)
    kept = pool_of(leased)
    with kept.lease(seconds=30, timeout=30):
        forgotten = pool_of(empty)
        for each in others:
            pool_of(each)
        assert len(get_stats()) == MAX_POOLS + 1
        assert pool_of(leased) is kept
    # A thread that has got the forgotten one is served.
    with forgotten.lease(seconds=30, timeout=30):
        assert pool_of(empty) is not forgotten
    assert forgotten.empty


# -- closing ---------------------------------------------------------------------------


@pytest.mark.parametrize(("timeout", "quits"), [(2.0, 3), (0, 0)])
def test_closing_sends_quit_on_all_idle_connections_if_there_is_time(
    server: FaultServer, timeout: float, quits: int
) -> None:
    for each in variants(server, 3):
        touch(each)
    close_pools(timeout)
    close_pools(timeout)

    assert server.wait_for(lambda: server.open_connections == 0)
    assert spoken(server).count("QUIT") == quits
    assert get_stats() == []
    touch(config(server))  # opens a new pool
    assert get_stats()[0]["opened"] == 1


def test_closing_takes_no_longer_than_its_timeout() -> None:
    with FaultServer([On("quit", hang())], tls=None) as server:
        for each in variants(server, 10):
            touch(each)
        began = time.monotonic()
        close_pools(timeout=0.2)

        assert 0.2 <= time.monotonic() - began < 5
        assert server.wait_for(lambda: server.open_connections == 0)


WITHOUT_FORK = "import django, os; django.setup(); del os.register_at_fork\n"


def test_a_system_without_fork_can_send(server: FaultServer) -> None:
    output("send('bob@example.org')", server.options(), before=WITHOUT_FORK)

    assert server.delivered == {"bob@example.org": 1}
