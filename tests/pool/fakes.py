"""A pool of sessions without a network, with a clock that tests turn by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from django_lettermint.conf import PoolConfig
from django_lettermint.exceptions import ConnectFailed
from django_lettermint.pool import ConnectionPool

if TYPE_CHECKING:
    from django_lettermint.pool import PooledConnection


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, SystemExit, gevent.Timeout and the like."""


def interrupt() -> NoReturn:
    raise Interrupt


class FakeSession:
    """A session whose state is set by a test; records how it was closed."""

    def __init__(self, *, mail_max: int | None = None) -> None:
        self.mail_max = mail_max
        self.messages = 0
        self.needs_rset = False
        self.in_step = True
        self.closed = False
        #: The server has neither sent anything nor closed.
        self.healthy = True
        #: Whether the server answers NOOP, and what happens at QUIT.
        self.answer: Callable[[], bool] = lambda: True
        self.on_quit: Callable[[], object] = lambda: None
        self.pings: list[float] = []
        #: "quit", and until when its reply was awaited, in order.
        self.ending: list[str | float] = []

    @property
    def reusable(self) -> bool:
        return self.in_step and not self.closed

    @property
    def sent_quit(self) -> bool:
        return "quit" in self.ending

    def alive(self) -> bool:
        return self.healthy and not self.closed

    def ping(self, seconds: float) -> bool:
        self.pings.append(seconds)
        return self.answer()

    def send_quit(self) -> None:
        self.ending.append("quit")
        self.on_quit()

    def wait_closed(self, until: float) -> None:
        self.ending.append(until)
        self.close()

    def close(self) -> None:
        self.closed = True


class FakePool(ConnectionPool[FakeSession]):
    """A pool of such sessions."""

    def __init__(self, *, mail_max: int | None = None, **options: Any) -> None:
        self.now = 1000.0
        self.opened: list[FakeSession] = []
        #: Arguments of each call of `connect`.
        self.calls: list[tuple[float, float]] = []
        #: Called by `connect`; may raise.
        self.before_connect: Callable[[], object] = lambda: None

        def connect(until: float, timeout: float) -> FakeSession:
            self.calls.append((until, timeout))
            self.before_connect()
            self.opened.append(FakeSession(mail_max=mail_max))
            return self.opened[-1]

        super().__init__(
            connect, PoolConfig(**options), lambda: self.now, name="relay.test"
        )

    @property
    def alive(self) -> list[FakeSession]:
        """Return the sessions that are not closed."""
        return [session for session in self.opened if not session.closed]

    @property
    def reasons(self) -> dict[str, int]:
        """Return how many connections were closed for each reason."""
        return self.stats()["closed"]

    def hold(
        self, seconds: float = 3600, **options: bool
    ) -> AbstractContextManager[PooledConnection[FakeSession]]:
        """Lease a connection."""
        return self.lease(seconds=seconds, timeout=30, **options)

    def use(self) -> FakeSession:
        """Lease a connection, give it back, and return its session."""
        with self.hold() as connection:
            return connection.session

    def keep_idle(self, count: int, *, apart: float = 0) -> list[FakeSession]:
        """Open so many connections and give them back, `apart` seconds after each other.

        Returns their sessions in this order.
        """
        leases = [self.hold(force_new=True) for _ in range(count)]
        sessions = [lease.__enter__().session for lease in leases]
        for lease in leases:
            self.now += apart
            lease.__exit__(None, None, None)
        return sessions


class Caller(threading.Thread):
    """A thread that leases a connection and holds it until `leave` is set."""

    def __init__(self, pool: FakePool, *, force_new: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.force_new = force_new
        self.leave = threading.Event()
        #: It has a connection or an error.
        self.arrived = threading.Event()
        self.connection: PooledConnection[FakeSession] | None = None
        self.error: Exception | None = None

    @property
    def session(self) -> FakeSession:
        assert self.arrived.wait(30)
        assert self.connection, self.error
        return self.connection.session

    def run(self) -> None:
        try:
            with self.pool.hold(force_new=self.force_new) as self.connection:
                self.arrived.set()
                self.leave.wait(30)
        except Exception as error:  # noqa: BLE001 - tests look at it
            self.error = error
        self.arrived.set()

    def ask(self) -> None:
        """Start, and return once it has a connection, an error, or waits."""
        waits = self.pool.stats()["waits"]
        self.start()
        while not self.arrived.wait(0.001):
            if self.pool.stats()["waits"] > waits:
                return

    def end(self) -> None:
        """Give the connection back."""
        self.leave.set()
        self.join(30)


@contextmanager
def callers(pool: FakePool, count: int) -> Iterator[list[Caller]]:
    """Have callers ask one after the other; they leave at the end of the block."""
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


def too_many_connections(code: int = 421) -> ConnectFailed:
    """Return the error of a relay that accepts no further connection, by default for now."""
    error = ConnectFailed(f"greeting was refused: {code} too many connections")
    error.step = "greeting"
    return error.with_reply(code, "too many connections")


@contextmanager
def locked(lock: Any) -> Iterator[None]:
    """Have another thread hold a lock, as an interrupt can leave it."""
    holds, end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holds.set()
            end.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(30)
    try:
        yield
    finally:
        end.set()
        thread.join(30)
