"""Connections without a network, for tests of the pool alone, and a clock to turn by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django_lettermint.conf import PoolConfig
from django_lettermint.pool.connection_pool import ConnectionPool

if TYPE_CHECKING:
    from django_lettermint.pool.connection import Lease


class FakeConnection:
    """Does as a test tells it, and notes what the pool does with it."""

    def __init__(self, *, mail_max: int | None = None) -> None:
        self.mail_max = mail_max
        self.messages = 0
        self.dirty = False
        self.in_step = True
        self.closed = False
        #: The server is there and silent.
        self.healthy = True
        #: What the server makes of NOOP, and what happens at QUIT.
        self.answer: Callable[[], bool] = lambda: True
        self.on_goodbye: Callable[[], object] = lambda: None
        self.pings: list[float] = []
        self.goodbyes = 0
        #: Until when the pool waits for the server's goodbye.
        self.awaited: list[float] = []

    @property
    def reusable(self) -> bool:
        return self.in_step and not self.closed

    def alive(self) -> bool:
        return self.healthy and not self.closed

    def ping(self, seconds: float) -> bool:
        self.pings.append(seconds)
        return self.answer()

    def say_goodbye(self) -> None:
        self.goodbyes += 1
        self.on_goodbye()

    def await_goodbye(self, until: float) -> None:
        self.awaited.append(until)
        self.close()

    def close(self) -> None:
        self.closed = True


class FakePool(ConnectionPool[FakeConnection]):
    """A pool of such connections, with everything that a test turns and looks at."""

    def __init__(
        self, *, park: bool = True, mail_max: int | None = None, **options: Any
    ) -> None:
        self.now = 1000.0
        self.dialled: list[FakeConnection] = []
        self.ready_by: list[float] = []
        #: Called before each dial; raises what the dial shall fail with.
        self.before_dial: Callable[[], object] = lambda: None

        def connect(ready_by: float) -> FakeConnection:
            self.before_dial()
            self.ready_by.append(ready_by)
            self.dialled.append(FakeConnection(mail_max=mail_max))
            return self.dialled[-1]

        super().__init__(
            connect,
            PoolConfig(**options),
            lambda: self.now,
            park=park,
            name="relay.test",
        )

    def park(self, count: int) -> list[FakeConnection]:
        """Have this many connections idle, all dialled now; return them, oldest first."""
        leases = [self.lease(fresh=True) for _ in range(count)]
        connections = [lease.__enter__().connection for lease in leases]
        for lease in leases:
            lease.__exit__(None, None, None)
        return connections

    def lent(self) -> FakeConnection:
        """Lease a connection for a moment and return it."""
        with self.lease() as lease:
            return lease.connection


class Caller(threading.Thread):
    """Leases a connection in a thread of its own and holds it until told to leave."""

    def __init__(self, pool: FakePool, *, fresh: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.fresh = fresh
        self.leave = threading.Event()
        self.arrived = threading.Event()
        self.lease: Lease[FakeConnection] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self.pool.lease(fresh=self.fresh) as self.lease:
                self.arrived.set()
                self.leave.wait(30)
        except Exception as error:  # noqa: BLE001 - for the test to look at
            self.error = error
        self.arrived.set()

    def ask(self) -> None:
        """Start, and return when the pool has lent a connection or let the caller wait."""
        waits = self.pool.stats()["waits"]
        self.start()
        while not self.arrived.wait(0.001):
            if self.pool.stats()["waits"] > waits:
                return

    def end(self) -> None:
        """Give the connection back, or see how the wait ended."""
        self.leave.set()
        self.join(30)


@contextmanager
def callers(pool: FakePool, count: int) -> Iterator[list[Caller]]:
    """Have callers ask, one after the other; all are gone at the end."""
    threads = [Caller(pool) for _ in range(count)]
    try:
        for thread in threads:
            thread.ask()
        yield threads
    finally:
        for thread in threads:
            thread.leave.set()
        for thread in threads:
            thread.join(30)
