"""Connections that die, hang and are refused, and mail that is sent nevertheless."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from django_lettermint import pool
from django_lettermint.exceptions import (
    LettermintError,
    PoolTimeout,
)
from tests.faults import Action, On, accept_then, chain, drop, gate, raw, reply, stall
from tests.faultserver import FaultServer
from tests.sending import (
    SHORT,
    backend,
    cases,
    mail,
    mails,
)

if TYPE_CHECKING:
    from django_lettermint.backend import EmailBackend
    from django_lettermint.pool.stats import PoolStats
    from tests.faults import Phase


def keep_idle(sender: EmailBackend, count: int) -> None:
    """Have this many connections idle."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(pool.lease(sender.config, seconds=10, force_new=True))


def send_in_threads(
    sender: EmailBackend, threads: int, each: int
) -> list[LettermintError]:
    """Send from threads that begin together; return the errors."""
    errors: list[LettermintError] = []
    start = threading.Barrier(threads)

    def work(thread: int) -> None:
        start.wait(30)
        for number in range(each):
            try:
                sender.send_messages([mail(f"{thread}.{number}@example.org")])
            except LettermintError as error:
                errors.append(error)

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, range(threads)))
    return errors


def stats(sender: EmailBackend) -> PoolStats:
    return pool.get_pool(sender.config.endpoint).stats()


def assert_each_is_delivered_once(server: FaultServer, count: int) -> None:
    assert len(server.delivered) == count
    assert set(server.delivered.values()) == {1}
    assert server.violations == []


def assert_no_slot_is_lost(sender: EmailBackend, slots: int) -> None:
    now = stats(sender)
    assert now["in_use"] == now["waiting"] == 0
    keep_idle(sender, slots)


@pytest.mark.parametrize(
    "death",
    cases(
        closed=drop(),
        reset=drop(rst=True),
        closed_after_a_reply=reply(451, "4.4.2 Timeout waiting for data", close=True),
        announced_only=reply(421, "4.4.2 going to close"),
        half_a_reply=raw(b"421-4.4"),
    ),
)
def test_idle_connections_that_died_are_replaced_unnoticed(death: Action) -> None:
    with FaultServer() as server:
        sender = backend(server)
        keep_idle(sender, 3)
        server.act_on_all(death)

        assert sender.send_messages(mails(3)) == 3
        assert_each_is_delivered_once(server, 3)
        assert {each.connection for each in server.deliveries} == {4}
        assert stats(sender)["closed"] == {"stale": 3}


@pytest.mark.parametrize(
    ("phase", "late"),
    [
        ("rcpt", chain(gate(threading.Event()), reply(550, "5.1.1 late"))),
        ("dot", accept_then(stall(2 * SHORT, then=reply(250)))),
    ],
)
def test_a_late_reply_is_never_taken_for_that_to_another_command(
    phase: Phase, late: Action
) -> None:
    with FaultServer([On(phase, late, times=1)], tls=None) as server:
        sender = backend(
            server, timeout=SHORT, final_reply_timeout=SHORT, idempotency=False
        )
        sender.fail_silently = True
        for message in mails(2):
            sender.send_messages([message])

        assert_each_is_delivered_once(server, 2)
        assert server.deliveries[-1].connection == 2


def limited(server: FaultServer, limit: int) -> Action:
    """Greet no more than so many connections at once."""
    refused = reply(421, "too many connections, try again later", close=True)
    return lambda answer: refused(answer) if server.open_connections > limit else answer


def test_all_mail_is_sent_although_the_relay_allows_fewer_connections() -> None:
    with FaultServer() as server:
        server.script.append(On("banner", limited(server, 3)))
        sender = backend(server, pool={"max_size": 4, "timeout": 30})

        assert send_in_threads(sender, threads=8, each=5) == []
        assert_each_is_delivered_once(server, 40)
        assert_no_slot_is_lost(sender, 3)


def test_threads_share_few_connections_and_time_outs_lose_no_slot() -> None:
    with FaultServer(tls=None) as server:
        # Some time-outs end just as a slot becomes free.
        options = {"max_size": 4, "max_messages": 7, "timeout": 0.01}
        sender = backend(server, pool=options)
        errors = send_in_threads(sender, threads=50, each=4)

        assert {type(error) for error in errors} <= {PoolTimeout}
        assert_each_is_delivered_once(server, 200 - len(errors))
        assert server.peak_connections <= 4
        assert stats(sender)["timeouts"] == len(errors)
        assert_no_slot_is_lost(sender, 4)


def test_a_pool_closed_while_a_mail_is_on_its_way_lets_it_arrive() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("dot", gate(release, reached), times=1)]) as server:
        sender = backend(server)
        busy = threading.Thread(target=sender.send_messages, args=([mail()],))
        busy.start()
        assert reached.wait(30)
        pool.close_pools()
        assert server.open_connections == 1
        release.set()
        busy.join(30)

        assert_each_is_delivered_once(server, 1)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert pool.get_stats() == []
