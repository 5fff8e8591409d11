"""The connections of a pool, the requests that hold them, and how they are closed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

    from .connection_pool import ConnectionPool

#: Lifetimes are shortened by up to this share, so that they do not all end together.
LIFETIME_JITTER = 0.1
#: Seconds that one lease waits for servers to answer QUIT, however many there are.
QUIT_TIMEOUT = 0.05


class CloseReason(StrEnum):
    """Why a pool closed a connection."""

    #: It was unused for `max_idle`.
    IDLE = "idle"
    #: It reached `max_lifetime`.
    LIFETIME = "lifetime"
    #: It carried `max_messages`, or as many as the relay announced.
    MESSAGES = "messages"
    #: It was found dead before it was leased, or was as old as one that was.
    STALE = "stale"
    #: It was lost, or out of step with the relay, when it came back.
    ERROR = "error"
    #: The relay refused a message for this session.
    REFUSED = "refused"
    #: A new connection was asked for, and the pool was full.
    REPLACED = "replaced"
    #: All pools together had too many idle connections.
    SURPLUS = "surplus"
    #: The pool was closed.
    SHUTDOWN = "shutdown"
    #: The option `pool` is False, and the call of `send_messages()` is over.
    UNPOOLED = "unpooled"
    #: It belongs to the parent of a forked process.
    INHERITED = "inherited"
    #: An interrupt had broken the pool's lock.
    BROKEN = "broken"


#: Reasons after which nothing is said to the server.
_WITHOUT_QUIT = {
    CloseReason.STALE,
    CloseReason.ERROR,
    CloseReason.INHERITED,
    CloseReason.BROKEN,
}


class Session(Protocol):
    """What a pool asks of the connection it holds; `smtp.session.Session` is one."""

    @property
    def messages(self) -> int:
        """Return the number of transactions begun so far."""

    @property
    def needs_rset(self) -> bool:
        """Return whether the next transaction must begin with RSET."""

    @property
    def reusable(self) -> bool:
        """Return whether it is open and no reply is pending; without I/O."""

    @property
    def mail_max(self) -> int | None:
        """Return the server's limit of transactions a connection; without I/O."""

    def alive(self) -> bool:
        """Return whether the server has neither spoken nor closed; without waiting."""

    def ping(self, seconds: float) -> bool:
        """Return whether the server answers NOOP within so many seconds."""

    def send_quit(self) -> None:
        """Send QUIT; without waiting."""

    def wait_closed(self, until: float) -> None:
        """Wait for the reply to QUIT, at most until that `time.monotonic()`; close."""

    def close(self) -> None:
        """Close without writing anything, in a forked process as well."""


C = TypeVar("C", bound=Session)


@dataclass(slots=True, eq=False, kw_only=True)
class PooledConnection(Generic[C]):
    """A session of a pool, and what the pool knows about it.

    Used by one thread at a time: by the lease that holds it or, while it is idle, by
    the thread that holds the pool's lock.
    """

    session: C
    #: The pool's clock from when on it is not leased again. Never changes.
    expires_at: float
    #: Messages after which it is not leased again. Never changes.
    max_messages: float
    #: Idle seconds after which it is not leased again. Never changes.
    max_idle: float
    #: The pool's clock when it was opened or, later, came back. Never decreases.
    idle_since: float
    #: The pool's clock from when on it is not leased again, if it stays idle till then.
    idle_until: float = float("inf")
    #: It was idle before this lease: the server may have closed it unnoticed.
    reused: bool = False
    #: Why it is closed when it comes back, if it is. Set once by the lease.
    discard_reason: CloseReason | None = None

    @classmethod
    def begin(cls, session: C, config: PoolConfig, now: float) -> Self:
        """Wrap a new session, with the limits that hold for it."""
        jitter = 1 - LIFETIME_JITTER * random.random()  # noqa: S311
        limits = filter(None, (config.max_messages, session.mail_max))
        return cls(
            session=session,
            expires_at=now + config.max_lifetime * jitter,
            max_messages=min(limits, default=float("inf")),
            max_idle=config.max_idle,
            idle_since=now,
        )

    def discard(self, reason: CloseReason) -> None:
        """Have the connection closed when it comes back."""
        self.discard_reason = reason

    def end_lease(self, now: float) -> CloseReason | None:
        """Note that it came back; return why it is to be closed, or None."""
        self.reused, self.idle_since = True, now
        self.idle_until = min(self.expires_at, now + self.max_idle)
        if self.discard_reason:
            return self.discard_reason
        return self.limit_reached(now) if self.session.reusable else CloseReason.ERROR

    def limit_reached(self, now: float) -> CloseReason | None:
        """Return the limit after which it is not leased again, or None."""
        if now >= self.expires_at:
            return CloseReason.LIFETIME
        if self.session.messages >= self.max_messages:
            return CloseReason.MESSAGES
        if now - self.idle_since >= self.max_idle:
            return CloseReason.IDLE
        return None


@dataclass(slots=True, eq=False, kw_only=True)
class PoolRequest(Generic[C]):
    """One caller's way to a connection and back; it holds a slot while it is busy.

        waiting ──► busy ──► ended          busy: with a connection, or allowed to open
           └───────────────►                one; waiting again if the relay refuses it

    A connection that is to be closed has a request of its own, to hold its slot.
    """

    pool: ConnectionPool[C]
    #: Waiting requests are served in the order of this number. Never changes.
    number: int = 0
    #: Only a connection that is opened now will do.
    force_new: bool = False
    #: Neither the pool's timeout nor `max_waiting` applies. Never changes.
    ignore_pool_timeout: bool = False
    #: The pool's clock when it was made, and until which it may wait and test.
    asked_at: float = 0.0
    wait_until: float = 0.0
    #: The connection in its slot. In no other request, and not idle.
    connection: PooledConnection[C] | None = None
    #: Why that connection is to be closed; None if it may be kept.
    close_reason: CloseReason | None = None
    #: The `time.monotonic()` until which answers to QUIT are awaited; 0 before the first.
    quit_until: float = 0.0
    #: It has a slot, or has to look what became of the queue. Changes while locked.
    ready: bool = False
    #: Gets an item when `ready` becomes True. An Event would not do: an interrupted
    #: wait() can leave its lock locked, and set() would then block.
    wake_ups: SimpleQueue[None] = field(default_factory=SimpleQueue)

    def wake(self) -> None:
        """End the caller's wait; without waiting."""
        self.ready = True
        self.wake_ups.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until woken, but not much longer than so many seconds."""
        with suppress(Empty):
            self.wake_ups.get(timeout=max(0.0, seconds))

    def quit_by(self) -> float:
        """Return until when answers to QUIT are awaited; the first call begins the time."""
        self.quit_until = self.quit_until or time.monotonic() + QUIT_TIMEOUT
        return self.quit_until


def close_gracefully(sessions: Sequence[Session], until: float) -> None:
    """Close sessions, after QUIT where the server is there and in step.

    Waits for the replies to QUIT, altogether at most until that `time.monotonic()`.
    """
    try:
        leaving = [each for each in sessions if each.reusable and each.alive()]
        for session in leaving:
            session.send_quit()
        for session in leaving:
            session.wait_closed(until)
    finally:
        for session in sessions:
            session.close()


def close_and_free(requests: Sequence[PoolRequest[C]], until: float) -> None:
    """Close the connections of requests, of any pools, and give back their slots.

    Waits for answers to QUIT at most until that `time.monotonic()`.
    """
    try:
        close_sessions(requests, until)
    finally:
        for request in requests:
            request.pool.free(request)


def close_sessions(requests: Sequence[PoolRequest[C]], until: float) -> None:
    """Close the sessions that requests hold, after QUIT where that is right."""
    own = os.getpid()
    held = [(each, each.connection.session) for each in requests if each.connection]
    try:
        close_gracefully(
            [
                session
                for request, session in held
                if request.close_reason not in _WITHOUT_QUIT and request.pool.pid == own
            ],
            until,
        )
    finally:
        for _, session in held:
            session.close()
