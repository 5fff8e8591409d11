"""Threads, async code and green threads share connections; nothing is bound to any of them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from asgiref.sync import sync_to_async

from django_lettermint.backend import EmailBackend
from django_lettermint.pool import get_pool
from django_lettermint.testing import Relay
from tests.programs import output, program
from tests.sending import mail, mails

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Run a relay that takes a moment for each mail, so that senders meet."""
    with Relay(reply_delay=0.01) as running:
        yield running


def backend(relay: Relay, max_size: int) -> EmailBackend:
    return EmailBackend(**relay.options(pool={"max_size": max_size, "timeout": 60}))


@pytest.mark.parametrize(("thread_sensitive", "peak"), [(False, 2), (True, 1)])
def test_async_code_sends_through_threads(
    relay: Relay, *, thread_sensitive: bool, peak: int
) -> None:
    sender = backend(relay, max_size=2)

    async def send(number: int) -> int:
        run = sync_to_async(sender.send_messages, thread_sensitive=thread_sensitive)
        return await run([mail(f"{number}@example.org")])

    async def send_all() -> list[int]:
        return await asyncio.gather(*map(send, range(20)))

    for _ in range(2):  # each time in a new event loop
        assert asyncio.run(send_all()) == [1] * 20
    assert relay.statistics.messages == 40
    assert relay.statistics.peak == peak
    assert relay.statistics.connections == peak


def test_cancelled_async_code_loses_no_slot(relay: Relay) -> None:
    sender = backend(relay, max_size=1)
    send = sync_to_async(sender.send_messages, thread_sensitive=False)

    async def cancel() -> None:
        tasks = [asyncio.ensure_future(send([mail()])) for _ in range(4)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(cancel())
    sender.send_messages([mail("last@example.org")])
    stats = get_pool(sender.config.endpoint).stats()
    assert stats["in_use"] == stats["waiting"] == 0
    assert relay.statistics.peak == 1


GEVENT = "from gevent import monkey; monkey.patch_all()\n"
TWENTY = """
import gevent
jobs = [gevent.spawn(send, f"{number}@example.org") for number in range(20)]
gevent.joinall(jobs, raise_error=True)
"""
# While they wait for a slot, for a connection, for a reply; all of which is logged.
THIRTY_TIMEOUTS = """
import gevent, logging
logging.disable()

def hurry(number):
    with gevent.Timeout(number * 0.003, False):
        send("late@example.org")

gevent.joinall([gevent.spawn(hurry, number) for number in range(30)], raise_error=True)
send("last@example.org")
stats = pool.get_stats()[0]
say((stats["in_use"], stats["waiting"], stats["size"] <= 2))
"""


def test_green_threads_share_connections(relay: Relay) -> None:
    options = relay.options(pool={"max_size": 2, "timeout": 30})
    output(TWENTY, options, before=GEVENT)

    to = {message.recipients[0] for message in relay.messages}
    assert len(to) == relay.statistics.messages == 20
    assert relay.statistics.connections == relay.statistics.peak == 2


def test_timeouts_of_green_threads_lose_no_slot(relay: Relay) -> None:
    options = relay.options(pool={"max_size": 2, "timeout": 30})

    assert output(THIRTY_TIMEOUTS, options, before=GEVENT) == ["(0, 0, True)"]
    assert relay.messages[-1].recipients == ("last@example.org",)


WITHOUT_POLL = "import select; del select.poll\n"


def test_without_poll_connections_are_looked_at_all_the_same(relay: Relay) -> None:
    text = """
send("1@example.org")
say("sent")
sys.stdin.readline()
send("2@example.org")
say(pool.get_stats()[0]["closed"])
"""
    with program(text, relay.options(), before=WITHOUT_POLL) as process:
        assert process.stdout
        assert process.stdout.readline() == "sent\n"
        relay.drop_connections()
        out, err = process.communicate("\n", timeout=30)

    assert (out, err) == ("{'stale': 1}\n", "")
    assert relay.statistics.messages == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ten_thousand_mails_through_eight_threads() -> None:
    count, threads, max_size, max_messages = 10_000, 8, 4, 100
    with Relay() as relay:
        options = {"max_size": max_size, "max_messages": max_messages, "timeout": 60}
        sender = EmailBackend(**relay.options(pool=options))

        def work(thread: int) -> int:
            numbers = range(thread, count, threads)
            return sum(
                sender.send_messages([mail(f"{number}@example.org")])
                for number in numbers
            )

        with ThreadPoolExecutor(threads) as executor:
            assert sum(executor.map(work, range(threads))) == count

        to = [message.recipients[0] for message in relay.messages]
        assert len(to) == len(set(to)) == count
        stats = relay.statistics
        assert stats.peak <= max_size
        # Each is filled up, but for those that the end finds half full.
        least = count // max_messages
        assert least <= stats.connections <= least + max_size - 1
        pool_stats = get_pool(sender.config.endpoint).stats()
        assert pool_stats["opened"] == stats.connections
        assert pool_stats["messages"] == count
        assert pool_stats["retries"] == pool_stats["open_errors"] == 0


def test_a_batch_fills_connections_up(relay: Relay) -> None:
    relay.reply_delay = 0
    options = {"max_messages": 10}
    sender = EmailBackend(**relay.options(pool=options, batch_connections=1))

    assert sender.send_messages(mails(35)) == 35
    assert relay.statistics.connections == 4
    assert relay.statistics.peak == 1
