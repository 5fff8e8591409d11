"""Threads, green threads and async code share connections, which may die at any time."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from asgiref.sync import sync_to_async

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import PoolTimeout
from django_lettermint.testing import Relay
from tests.faults import Action, On, drop, raw, reply
from tests.faultserver import FaultServer
from tests.programs import output
from tests.sending import backend, cases, mail, mails

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.pool.stats import PoolStats


def keep_idle(sender: EmailBackend, count: int) -> None:
    """Have this many connections idle."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(pool.lease(sender.config, seconds=10, force_new=True))


def send_in_threads(sender: EmailBackend, threads: int, each: int) -> int:
    """Send from threads that begin together; return how often a wait was too long."""
    start = threading.Barrier(threads)
    failures: list[PoolTimeout] = []

    def work(thread: int) -> None:
        start.wait(30)
        for number in range(each):
            try:
                sender.send_messages([mail(f"{thread}.{number}@example.org")])
            except PoolTimeout as error:
                failures.append(error)

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(work, range(threads)))
    return len(failures)


def stats(sender: EmailBackend) -> PoolStats:
    return pool.get_pool(sender.config.endpoint).stats()


def assert_all_is_well(
    server: FaultServer, sender: EmailBackend, delivered: int, slots: int
) -> None:
    """Each mail was delivered once, and no slot is lost."""
    assert len(server.delivered) == delivered
    assert set(server.delivered.values()) == {1}
    assert server.violations == []
    assert stats(sender)["in_use"] == stats(sender)["waiting"] == 0
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
        assert {each.connection for each in server.deliveries} == {4}
        assert stats(sender)["closed"] == {"stale": 3}
        assert_all_is_well(server, sender, 3, 1)


def limited(server: FaultServer, limit: int) -> Action:
    """Greet no more than so many connections at once."""
    refused = reply(421, "too many connections, try again later", close=True)
    return lambda answer: refused(answer) if server.open_connections > limit else answer


def test_all_mail_is_sent_although_the_relay_allows_fewer_connections() -> None:
    with FaultServer() as server:
        server.script.append(On("banner", limited(server, 3)))
        sender = backend(server, pool={"max_size": 4, "timeout": 30})

        assert send_in_threads(sender, threads=8, each=5) == 0
        assert_all_is_well(server, sender, 40, 3)


def test_threads_share_few_connections_and_their_time_outs_lose_no_slot() -> None:
    with FaultServer(tls=None) as server:
        # Some time-outs end just as a slot becomes free.
        options = {"max_size": 4, "max_messages": 7, "timeout": 0.01}
        sender = backend(server, pool=options)
        failures = send_in_threads(sender, threads=50, each=4)

        assert server.peak_connections <= 4
        assert stats(sender)["timeouts"] == failures
        assert_all_is_well(server, sender, 200 - failures, 4)


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Run a relay that takes a moment for each mail, so that senders meet."""
    with Relay(reply_delay=0.01) as running:
        yield running


def test_async_code_shares_connections_and_loses_no_slot_when_cancelled(
    relay: Relay,
) -> None:
    sender = EmailBackend(**relay.options(pool={"max_size": 2, "timeout": 60}))
    send = sync_to_async(sender.send_messages, thread_sensitive=False)

    async def send_all() -> list[int]:
        cancelled = [asyncio.ensure_future(send([mail()])) for _ in range(4)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        return await asyncio.gather(
            *(send([mail(f"{number}@example.org")]) for number in range(20))
        )

    for _ in range(2):  # each time in a new event loop
        assert asyncio.run(send_all()) == [1] * 20
    assert (stats(sender)["in_use"], stats(sender)["waiting"]) == (0, 0)
    assert relay.statistics.connections == relay.statistics.peak == 2


GEVENT = "from gevent import monkey; monkey.patch_all()\n"
GREEN_THREADS = """
import gevent, logging
jobs = [gevent.spawn(send, f"{number}@example.org") for number in range(20)]
gevent.joinall(jobs, raise_error=True)
say(pool.get_stats()[0]["opened"])

def hurry(number):
    with gevent.Timeout(number * 0.003, False):
        send("late@example.org")

# The timeouts end while some wait for a slot and others for a reply, which is logged.
logging.disable()
gevent.joinall([gevent.spawn(hurry, number) for number in range(30)], raise_error=True)
send("last@example.org")
stats = pool.get_stats()[0]
say((stats["in_use"], stats["waiting"]))
"""


def test_green_threads_share_connections_and_their_timeouts_lose_no_slot(
    relay: Relay,
) -> None:
    options = relay.options(pool={"max_size": 2, "timeout": 30})
    assert output(GREEN_THREADS, options, before=GEVENT) == ["2", "(0, 0)"]

    to = [message.recipients[0] for message in relay.messages]
    assert sorted(to[:20]) == sorted(f"{number}@example.org" for number in range(20))
    assert to[-1] == "last@example.org"
