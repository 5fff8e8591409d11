"""Async code and green threads share connections, as the pool belongs to no thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from asgiref.sync import sync_to_async

from django_lettermint.backend import EmailBackend
from django_lettermint.pool import get_pool
from django_lettermint.testing import Relay
from tests.programs import output
from tests.sending import mail

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Run a relay that takes a moment for each mail, so that senders meet."""
    with Relay(reply_delay=0.01) as running:
        yield running


def test_async_code_shares_connections_and_loses_no_slot_when_cancelled(
    relay: Relay,
) -> None:
    options = relay.options(pool={"max_size": 2, "timeout": 60})
    sender = EmailBackend(**options)
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
    stats = get_pool(sender.config.endpoint).stats()
    assert (stats["in_use"], stats["waiting"]) == (0, 0)
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
