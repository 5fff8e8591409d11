"""The connections of a pool, who holds them and who waits, and how they are closed."""

from __future__ import annotations

import bisect
import operator
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

    from .connection_pool import ConnectionPool
    from .stats import Event, PoolStats

#: Lifetimes are shortened by up to this share, so that they do not all end together.
LIFETIME_JITTER = 0.1
#: Seconds for which a relay's limit of connections is remembered, and for which it is
#: assumed when the other connections were still being opened: they may be refused, too.
RELAY_LIMIT_SECONDS = 180.0
ASSUMED_LIMIT_SECONDS = 1.0
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
    #: The relay accepted it, but did not serve it while others were open.
    LIMITED = "limited"
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


class Slots(Generic[C]):
    """Who holds which connection and who waits for one; nothing here waits.

    Idle connections and busy requests are the slots, never more than `max_size`.
    Connections are leased newest first, so that a surplus grows old and is closed.
    """

    def __init__(
        self, max_size: int, stats: PoolStats, clock: Callable[[], float]
    ) -> None:
        #: Held by the thread that calls the methods; see `ConnectionPool._locked()`.
        self.lock = threading.RLock()
        #: A method is being called. True only while the lock is held.
        self.entered = False
        self.max_size = max_size
        self.clock = clock
        #: Counters of the pool; what `report()` fills in is out of date.
        self.stats = stats
        #: Connections that are not leased, the one kept last at the end.
        self.idle: list[PooledConnection[C]] = []
        #: Requests that hold a slot.
        self.busy: set[PoolRequest[C]] = set()
        #: Requests without a slot, by `number`. Empty while a slot is free.
        self.waiting: list[PoolRequest[C]] = []
        #: How many connections were open when the relay refused another one; at least 1.
        self.relay_limit: int | None = None
        #: The pool's clock from when on one more is tried. Set with `relay_limit`.
        self.relay_limit_until = 0.0

    @property
    def size(self) -> int:
        """Return the number of slots in use."""
        return len(self.idle) + len(self.busy)

    def capacity(self) -> int:
        """Return how many slots there are."""
        if self.relay_limit is None:
            return self.max_size
        return min(
            self.max_size, self.relay_limit + (self.clock() >= self.relay_limit_until)
        )

    # -- requests ------------------------------------------------------------------------

    def enter(self, request: PoolRequest[C], max_waiting: int) -> bool:
        """Give a new request a slot, or queue it; return False if too many wait."""
        self.stats["requests"] += 1
        if self.acquire(request):
            return True
        if max_waiting and len(self.waiting) > max_waiting:
            self.release(request)
            self.stats["timeouts"] += 1
            return False
        self.stats["waits"] += 1
        return True

    def acquire(self, request: PoolRequest[C]) -> bool:
        """Queue a request, and return whether it has got a slot at once."""
        if request not in self.waiting and request not in self.busy:
            bisect.insort(self.waiting, request, key=operator.attrgetter("number"))
        self._serve()
        return request in self.busy

    def recheck(
        self, request: PoolRequest[C], since: float, *, last: bool
    ) -> bool | None:
        """Return whether a request that has waited has a slot; None if it never will.

        One that was woken without a slot queues again, but not at `last`.
        """
        self.stats["wait_seconds"] += self.clock() - since
        if request in self.busy:
            return True
        if last:
            # At once, so that nothing is handed to it any more.
            self.release(request)
            self.stats["timeouts"] += 1
            return None
        request.ready = False
        return self.acquire(request)

    def wait_for_others(self, request: PoolRequest[C]) -> bool:
        """Queue a request again that the relay refused, unless nothing else is open."""
        others = self.size - (request in self.busy)
        if not others:
            # The relay refuses every connection now, which tells no limit.
            self.relay_limit_until = self.clock()
            return False
        alive = self.idle or any(each.connection for each in self.busy)
        seconds = RELAY_LIMIT_SECONDS if alive else ASSUMED_LIMIT_SECONDS
        self.relay_limit, self.relay_limit_until = others, self.clock() + seconds
        self.stats["waits"] += 1
        request.force_new = request.ready = False
        self.busy.discard(request)
        self.acquire(request)
        return True

    def limit_to_open(self) -> bool:
        """Have no further connection opened for now; return False if none is open."""
        held = sum(request.connection is not None for request in self.busy)
        if count := len(self.idle) + held:
            self.relay_limit = count
            self.relay_limit_until = self.clock() + RELAY_LIMIT_SECONDS
        return bool(count)

    def release(self, request: PoolRequest[C]) -> None:
        """Take back a slot, or a place in the queue; what is in the slot is kept idle."""
        if request in self.waiting:  # both at once, if acquire() was interrupted
            self.waiting.remove(request)
        connection, request.connection = request.connection, None
        if request in self.busy:
            self.busy.remove(request)
            if connection:
                self.idle.append(connection)
        self._serve()

    # -- connections ---------------------------------------------------------------------

    def note_opened(
        self, request: PoolRequest[C], connection: PooledConnection[C]
    ) -> None:
        """Put a new connection into a request's slot."""
        request.connection = connection
        self.stats["opened"] += 1
        if self.relay_limit is not None and self.size > self.relay_limit:
            # The relay accepted one more than the limit that was assumed.
            self.relay_limit = None
            self._serve()

    def note_closed(self, request: PoolRequest[C]) -> bool:
        """Empty the slot of a connection that was closed; return whether it was new."""
        connection, request.connection = request.connection, None
        if connection and request.close_reason:
            self.count_closed(request.close_reason, [connection])
        return bool(connection)

    def replace(self, request: PoolRequest[C]) -> None:
        """Put an idle connection, or none, where one was closed unused."""
        self.stats["reused"] -= self.note_closed(request)
        if not request.force_new:
            request.connection = self._take_newest()
            self.stats["reused"] += request.connection is not None

    def give_back(self, request: PoolRequest[C], resets: int) -> bool:
        """Note what a lease has done; return False if its connection is to be closed."""
        if request.connection:
            if request not in self.busy:  # of slots whose lock was broken
                request.close_reason = request.close_reason or CloseReason.BROKEN
            if request.close_reason:
                return False
        self.stats["resets"] += resets
        self.release(request)
        return True

    def free(self, request: PoolRequest[C]) -> bool:
        """Take back the slot of a connection that was closed; return whether it was new."""
        noted = self.note_closed(request)
        if request.close_reason is CloseReason.LIMITED:
            # Those being opened count as well: each may meet the same, and lower it again.
            self.relay_limit = max(1, self.size - 1)
            self.relay_limit_until = self.clock() + RELAY_LIMIT_SECONDS
        self.release(request)
        return noted

    def take_idle(
        self,
        pool: ConnectionPool[C],
        taken: list[PoolRequest[C]],
        kept_before: float,
        reason_of_those: CloseReason,
    ) -> None:
        """Take idle connections that are to be closed; they keep their slots till then."""
        now = self.clock()
        for connection in tuple(self.idle):
            reason = connection.limit_reached(now)
            if connection.idle_since <= kept_before:
                reason = reason_of_those
            if reason:
                request = PoolRequest(
                    pool=pool, connection=connection, close_reason=reason
                )
                taken.append(request)
                self.busy.add(request)
                self.idle.remove(connection)

    def clear(self, reason: CloseReason) -> list[PooledConnection[C]]:
        """Wake all that wait; return what was idle, to be closed."""
        idle, self.idle = self.idle, []
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            request.wake()
        self.count_closed(reason, idle)
        return idle

    # -- statistics ----------------------------------------------------------------------

    def count(self, event: Event) -> None:
        """Add one to a counter."""
        self.stats[event] += 1

    def count_closed(
        self, reason: CloseReason, connections: Sequence[PooledConnection[C]]
    ) -> None:
        """Count connections that were closed, and the messages they carried."""
        if connections:
            closed = self.stats["closed"]
            closed[reason.value] = closed.get(reason.value, 0) + len(connections)
        self.stats["messages"] += sum(each.session.messages for each in connections)

    def report(self) -> PoolStats:
        """Return the state and what has happened so far."""
        held = [each.connection for each in self.busy if each.connection]
        messages = sum(each.session.messages for each in (*self.idle, *held))
        return {
            **self.stats,
            "messages": self.stats["messages"] + messages,
            "size": self.size,
            "idle": len(self.idle),
            "in_use": len(self.busy),
            "waiting": len(self.waiting),
            "closed": dict(self.stats["closed"]),
        }

    # -- decisions -----------------------------------------------------------------------

    def _serve(self) -> None:
        """Give the free slots to those who wait longest."""
        while self.waiting:
            request = self.waiting[0]
            if request not in self.busy:
                connection = None if request.force_new else self._take_newest()
                if connection is None and self.size >= self.capacity():
                    if not self.idle:
                        return
                    # To be closed, to make room for a new one.
                    connection = self.idle.pop(0)
                self.stats["reused"] += connection is not None
                request.connection = connection
                self.busy.add(request)
            # Now, and again after an interrupt: none with a slot may wait on.
            request.wake()
            self.waiting.remove(request)

    def _take_newest(self) -> PooledConnection[C] | None:
        now = self.clock()
        for number in reversed(range(len(self.idle))):
            if now < self.idle[number].idle_until:
                return self.idle.pop(number)
        return None


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
