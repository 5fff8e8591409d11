"""The connections of a pool, the requests that hold or await them, and how they close."""

from __future__ import annotations

import bisect
import operator
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

    from .connection_pool import ConnectionPool
    from .stats import Event, PoolStats

#: Lifetimes are shortened by up to this share, so that they do not all end together.
LIFETIME_JITTER = 0.1
#: Seconds for which the relay's limit of connections is remembered; fewer if the other
#: connections were still being opened, as the relay may refuse those, too.
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
    #: The relay accepted the login but no message, while others were open.
    LIMITED = "limited"
    #: A new connection was asked for, and the pool was full.
    REPLACED = "replaced"
    #: All pools together had too many idle connections.
    SURPLUS = "surplus"
    #: The pool was closed.
    SHUTDOWN = "shutdown"
    #: The option `pool` is False, and the call of `send_messages()` has ended.
    UNPOOLED = "unpooled"
    #: It belongs to the parent of a forked process.
    INHERITED = "inherited"
    #: An interrupt left the pool's lock locked.
    BROKEN = "broken"


#: Reasons after which the pool sends no QUIT.
_WITHOUT_QUIT = {
    CloseReason.STALE,
    CloseReason.ERROR,
    CloseReason.INHERITED,
    CloseReason.BROKEN,
}


class RequestState(Enum):
    """The state of a request for a connection."""

    #: It is in the queue.
    WAITING = "waiting"
    #: It has a slot: with a connection, or to open one.
    BUSY = "busy"
    #: It has neither.
    ENDED = "ended"


class Session(Protocol):
    """An SMTP session as far as a pool uses it; `smtp.session.Session` is one."""

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
        """Return the server's limit of transactions per connection; without I/O."""

    def alive(self) -> bool:
        """Return whether the server has neither sent anything nor closed, at once."""

    def ping(self, seconds: float) -> bool:
        """Return whether the server answers NOOP within so many seconds."""

    def send_quit(self) -> None:
        """Send QUIT without waiting for the reply."""

    def wait_closed(self, until: float) -> None:
        """Wait for the reply to QUIT, at most until that `time.monotonic()`; close."""

    def close(self) -> None:
        """Close without writing anything, in a forked process as well."""


C = TypeVar("C", bound=Session)


@dataclass(slots=True, eq=False, kw_only=True)
class PooledConnection(Generic[C]):
    """A session and its limits in the pool.

    Used by one thread at a time: by the lease that holds it or, while it is idle, by
    the thread that holds the pool's lock.
    """

    session: C
    #: End of its lifetime, by the pool's clock. Never changes.
    expires_at: float
    #: Messages after which it is not leased again. Never changes.
    max_messages: float
    #: Idle seconds after which it is not leased again. Never changes.
    max_idle: float
    #: When it was opened or last came back, by the pool's clock. Never decreases.
    idle_since: float
    #: When it expires if it stays idle, by the pool's clock. Set with `idle_since`.
    idle_until: float = float("inf")
    #: It was idle before this lease, when the server may have closed it. False only
    #: during the first lease.
    reused: bool = False
    #: Why it must be closed when it comes back. Set by the lease, never reset.
    discard_reason: CloseReason | None = None

    @classmethod
    def for_session(cls, session: C, config: PoolConfig, now: float) -> Self:
        """Return the connection of a session opened `now`."""
        jitter = 1 - LIFETIME_JITTER * random.random()  # noqa: S311 - not a secret
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
        """Record that it came back; return why it must be closed, or None."""
        self.reused, self.idle_since = True, now
        self.idle_until = min(self.expires_at, now + self.max_idle)
        if self.discard_reason:
            return self.discard_reason
        return self.limit_reached(now) if self.session.reusable else CloseReason.ERROR

    def limit_reached(self, now: float) -> CloseReason | None:
        """Return the limit that it has reached, or None."""
        if now >= self.expires_at:
            return CloseReason.LIFETIME
        if self.session.messages >= self.max_messages:
            return CloseReason.MESSAGES
        if now >= self.idle_until:
            return CloseReason.IDLE
        return None


@dataclass(slots=True, eq=False, kw_only=True)
class PoolRequest(Generic[C]):
    """A caller's request for a connection, from the queue to the end of the lease.

        WAITING ──► BUSY ──► ENDED          WAITING again if the relay refuses another
           └───────────────────►            connection

    An idle connection that is to be closed gets a request, too, which holds its slot.
    """

    pool: ConnectionPool[C]
    #: Waiting requests are served in the order of their numbers. Never changes.
    number: int = 0
    #: It needs a new connection. Set by an unanswered ping, reset if the relay refuses.
    force_new: bool = False
    #: The request is refused if it makes more than so many wait; 0 is no limit. Never
    #: changes.
    max_waiting: int = 0
    #: Seconds for waiting and testing, and their end by the pool's clock. Never change.
    wait_seconds: float = 0.0
    wait_until: float = 0.0
    #: The connection in its slot. In no other request, and not idle.
    connection: PooledConnection[C] | None = None
    #: Why `connection` must be closed; None while it may be kept.
    close_reason: CloseReason | None = None
    #: Until when replies to QUIT are awaited, by `time.monotonic()`; 0 before the first.
    quit_until: float = 0.0
    #: An item ends the caller's wait. (An Event would not do: an interrupted wait() can
    #: leave its lock locked, and set() would then block.)
    wake_ups: SimpleQueue[None] = field(default_factory=SimpleQueue)

    def wait(self, seconds: float) -> bool:
        """Wait for a wake-up, at most so many seconds; return whether one came."""
        try:
            self.wake_ups.get(timeout=max(0.0, seconds))
        except Empty:
            return False
        return True

    def quit_by(self) -> float:
        """Return the end of the time for replies to QUIT, which the first call starts."""
        self.quit_until = self.quit_until or time.monotonic() + QUIT_TIMEOUT
        return self.quit_until


_number = operator.attrgetter("number")


class Slots(Generic[C]):
    """The slots of a pool and the queue for them; no method waits.

    Idle connections and busy requests fill the slots, never more than `max_size`.
    Connections are leased newest first, so that those not needed reach `max_idle`.
    """

    def __init__(
        self, max_size: int, stats: PoolStats, clock: Callable[[], float]
    ) -> None:
        #: Held by the thread that calls a method; see `ConnectionPool._locked()`.
        self.lock = threading.RLock()
        #: A method is running. True only while the lock is held.
        self.entered = False
        self.max_size = max_size
        self.clock = clock
        #: Counters of the pool; `report()` computes the other fields.
        self.stats = stats
        #: Connections that are not leased, in the order in which they came back.
        self.idle: list[PooledConnection[C]] = []
        #: Requests that hold a slot.
        self.busy: set[PoolRequest[C]] = set()
        #: Requests without a slot, by `number`. Empty while a slot is free.
        self.waiting: list[PoolRequest[C]] = []
        #: How many connections were open when the relay refused another one; at least 1.
        self.relay_limit: int | None = None
        #: When one more is tried, by the pool's clock. Set with `relay_limit`.
        self.relay_limit_until = 0.0

    @property
    def size(self) -> int:
        """Return the number of slots in use."""
        return len(self.idle) + len(self.busy)

    def capacity(self) -> int:
        """Return how many slots there are."""
        if self.relay_limit is None:
            return self.max_size
        one_more = self.clock() >= self.relay_limit_until
        return min(self.max_size, self.relay_limit + one_more)

    # -- requests ------------------------------------------------------------------------

    def enter(self, request: PoolRequest[C]) -> RequestState:
        """Give a new request a slot or a place in the queue, or refuse it."""
        self.stats["requests"] += 1
        bisect.insort(self.waiting, request, key=_number)
        self._serve()
        if request in self.busy:
            return RequestState.BUSY
        if request.max_waiting and len(self.waiting) > request.max_waiting:
            self.release(request)
            self.stats["timeouts"] += 1
            return RequestState.ENDED
        self.stats["waits"] += 1
        return RequestState.WAITING

    def recheck(
        self, request: PoolRequest[C], since: float, *, last: bool
    ) -> RequestState:
        """Return where a request is that has waited `since` that moment.

        It ends if this was the `last` wait. Otherwise it queues again, which is needed
        after a broken lock: these slots may be new.
        """
        self.stats["wait_seconds"] += self.clock() - since
        if last and request not in self.busy:
            # At once, so that no slot is given to it any more.
            self.release(request)
            self.stats["timeouts"] += 1
            return RequestState.ENDED
        return self._requeue(request)

    def wait_for_others(self, request: PoolRequest[C]) -> RequestState:
        """Queue a request again that the relay refused, unless nothing else is open."""
        others = self.size - (request in self.busy)
        if not others:
            # The relay refuses every connection now, which tells no limit.
            self.relay_limit_until = self.clock()
            return RequestState.ENDED
        alive = self.idle or any(each.connection for each in self.busy)
        seconds = RELAY_LIMIT_SECONDS if alive else ASSUMED_LIMIT_SECONDS
        self.relay_limit, self.relay_limit_until = others, self.clock() + seconds
        self.stats["waits"] += 1
        request.force_new = False
        self.busy.discard(request)
        return self._requeue(request)

    def limit_to_open(self) -> bool:
        """Have no further connection opened for now; return False if none is open."""
        held = sum(request.connection is not None for request in self.busy)
        if count := len(self.idle) + held:
            self.relay_limit = count
            self.relay_limit_until = self.clock() + RELAY_LIMIT_SECONDS
        return bool(count)

    def lift_limit(self) -> None:
        """Open as many connections as the options allow again."""
        self.relay_limit = None
        self._serve()

    def release(self, request: PoolRequest[C]) -> bool:
        """End a request and keep its connection idle.

        Return False, and change nothing, if the connection must be closed first.
        """
        connection = request.connection
        if connection and request not in self.busy:  # of slots whose lock was broken
            request.close_reason = request.close_reason or CloseReason.BROKEN
        if connection and request.close_reason:
            return False
        if request in self.waiting:  # and busy as well, if _serve() was interrupted
            self.waiting.remove(request)
        if connection:
            self.stats["resets"] += connection.session.needs_rset
            # Nothing may be called in between: an interrupt would lose the connection.
            request.connection = None
            self.idle.append(connection)
        self.busy.discard(request)
        self._serve()
        return True

    # -- connections ---------------------------------------------------------------------

    def note_opened(
        self, request: PoolRequest[C], connection: PooledConnection[C]
    ) -> None:
        """Put a new connection into a request's slot."""
        request.connection = connection
        self.stats["opened"] += 1
        if self.relay_limit is not None and self.size > self.relay_limit:
            # The relay accepted one more than the limit that was assumed.
            self.lift_limit()

    def note_closed(self, request: PoolRequest[C]) -> bool:
        """Empty the slot of a connection that was closed; return False if it was empty."""
        connection, request.connection = request.connection, None
        if connection and request.close_reason:
            self.count_closed(request.close_reason, [connection])
        return bool(connection)

    def replace(self, request: PoolRequest[C]) -> None:
        """Put another idle connection, if any, in the slot of one that was closed."""
        self.stats["reused"] -= self.note_closed(request)
        if not request.force_new:
            request.connection = self._take_newest()
            self.stats["reused"] += request.connection is not None

    def free(self, request: PoolRequest[C]) -> bool:
        """End a request whose connection was closed; return False if it had ended."""
        noted = self.note_closed(request)
        if request.close_reason is CloseReason.LIMITED:
            # Connections being opened count as well. If one is limited, too, it lowers
            # the limit again.
            self.relay_limit = max(1, self.size - 1)
            self.relay_limit_until = self.clock() + RELAY_LIMIT_SECONDS
        self.release(request)
        return noted

    def take_idle(
        self,
        pool: ConnectionPool[C],
        taken: list[PoolRequest[C]],
        kept_before: float,
        age_reason: CloseReason,
    ) -> None:
        """Take idle connections out for closing; until then they keep their slots."""
        now = self.clock()
        for connection in tuple(self.idle):
            reason = connection.limit_reached(now)
            if connection.idle_since <= kept_before:
                reason = age_reason
            if reason:
                request = PoolRequest(
                    pool=pool, connection=connection, close_reason=reason
                )
                taken.append(request)
                self.busy.add(request)
                self.idle.remove(connection)

    def clear(self, reason: CloseReason) -> list[PooledConnection[C]]:
        """Empty the queue and wake the callers; return the idle connections."""
        idle, self.idle = self.idle, []
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            request.wake_ups.put(None)
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
        """Return the state and the counters."""
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

    # -- the queue -----------------------------------------------------------------------

    def _requeue(self, request: PoolRequest[C]) -> RequestState:
        if request not in self.waiting and request not in self.busy:
            bisect.insort(self.waiting, request, key=_number)
        self._serve()
        return RequestState.BUSY if request in self.busy else RequestState.WAITING

    def _serve(self) -> None:
        """Give the free slots to those who have waited longest."""
        while self.waiting:
            request = self.waiting[0]
            if request not in self.busy:
                connection = None if request.force_new else self._take_newest()
                if connection is None and self.size >= self.capacity():
                    if not self.idle:
                        return
                    # It is closed to make room for a new one.
                    connection = self.idle.pop(0)
                self.stats["reused"] += connection is not None
                request.connection = connection
                self.busy.add(request)
            # Again if interrupted before the next line: a wake-up too many is harmless.
            request.wake_ups.put(None)
            self.waiting.remove(request)

    def _take_newest(self) -> PooledConnection[C] | None:
        now = self.clock()
        for number in reversed(range(len(self.idle))):
            if now < self.idle[number].idle_until:
                return self.idle.pop(number)
        return None


def close_gracefully(sessions: Sequence[Session], until: float) -> None:
    """Close sessions, after QUIT on those that are alive and await no reply.

    Waits for all replies to QUIT together at most until that `time.monotonic()`.
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
    """Close the connections of requests, of any pools, and end the requests.

    Waits for replies to QUIT at most until that `time.monotonic()`.
    """
    try:
        close_sessions(requests, until)
    finally:
        for request in requests:
            request.pool.free(request)


def close_sessions(requests: Sequence[PoolRequest[C]], until: float) -> None:
    """Close the sessions that requests hold, after QUIT if the reason allows it."""
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
