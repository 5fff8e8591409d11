"""A pool of connections: opens, tests, leases and closes them.

`_Slots` decides who gets what, under the pool's lock; connecting, testing and closing
happen outside it. No thread is needed: what has expired is noticed at each return.

A signal handler may raise between any two instructions (Ctrl-C, a task's time limit).
So whatever ends a lease can be run twice, and no loop and nothing that could raise stands
directly in a `with` block of the lock: CPython 3.12 to 3.15 leave the jump at a loop's end
outside the exception table. A lock that leaks all the same is noticed and replaced.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import operator
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Generic

from django_lettermint.exceptions import ConnectFailed, PoolClosed, PoolTimeout

from .connection import C, CloseReason, PooledConnection, close_gracefully
from .stats import Event, PoolStats, add_events, no_stats

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

#: Seconds for the answer of a connection that has idled longer than `ping_after`.
PING_TIMEOUT = 5.0
#: Seconds that one lease waits for servers to answer QUIT, however many there are.
QUIT_TIMEOUT = 0.05
#: Seconds for the pool's lock. Nothing waits while it is held: then it is broken.
LOCK_TIMEOUT = 1.0
#: Seconds for which a relay's limit of connections is remembered.
RELAY_LIMIT_SECONDS = 180.0

#: Reasons after which nothing is said to the server.
_WITHOUT_QUIT = {
    CloseReason.STALE,
    CloseReason.ERROR,
    CloseReason.INHERITED,
    CloseReason.BROKEN,
}
#: Reasons that tell of something unusual.
_WORTH_KNOWING = {CloseReason.STALE, CloseReason.ERROR, CloseReason.REFUSED}

logger = logging.getLogger("django_lettermint")


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
    #: Set while it has a slot, and when it may have to queue again.
    ready: threading.Event = field(default_factory=threading.Event)

    def quit_by(self) -> float:
        """Return until when answers to QUIT are awaited; the first call begins the time."""
        self.quit_until = self.quit_until or time.monotonic() + QUIT_TIMEOUT
        return self.quit_until


class _Slots(Generic[C]):
    """Who holds which connection and who waits for one; nothing here waits.

    Idle connections and busy requests are the slots, never more than `max_size`.
    Connections are leased newest first, so that a surplus grows old and is closed.
    """

    def __init__(self, max_size: int) -> None:
        #: Guards all below.
        self.lock = threading.Lock()
        self.max_size = max_size
        #: Connections that nobody holds, the one kept last at the end.
        self.idle: list[PooledConnection[C]] = []
        #: Requests that hold a slot.
        self.busy: set[PoolRequest[C]] = set()
        #: Requests without a slot, by `number`. Empty while a slot is free.
        self.waiting: list[PoolRequest[C]] = []
        #: How many connections the relay allowed when it refused another one; at least 1.
        self.relay_limit: int | None = None
        #: The pool's clock from when on one more is tried. Set with `relay_limit`.
        self.relay_limit_until = 0.0

    @property
    def size(self) -> int:
        """Return the number of slots in use."""
        return len(self.idle) + len(self.busy)

    def capacity(self, now: float) -> int:
        """Return how many slots there are."""
        if self.relay_limit is None:
            return self.max_size
        return min(self.max_size, self.relay_limit + (now >= self.relay_limit_until))

    def acquire(self, request: PoolRequest[C], now: float) -> bool:
        """Queue a request, and return whether it has got a slot at once."""
        if request not in self.waiting and request not in self.busy:
            bisect.insort(self.waiting, request, key=operator.attrgetter("number"))
        self._serve(now)
        return request in self.busy

    def release(self, request: PoolRequest[C], now: float) -> None:
        """Take back a slot, or a place in the queue; what is in the slot is kept idle."""
        if request in self.waiting:  # both at once, if acquire() was interrupted
            self.waiting.remove(request)
        connection, request.connection = request.connection, None
        if request in self.busy:
            self.busy.remove(request)
            if connection:
                self.idle.append(connection)
        self._serve(now)

    def replace(self, request: PoolRequest[C], now: float) -> None:
        """Put an idle connection, or none, where one was no good."""
        request.connection = None if request.force_new else self._take_newest(now)

    def take_idle(
        self,
        pool: ConnectionPool[C],
        close_reason: Callable[[PooledConnection[C]], CloseReason | None],
        taken: list[PoolRequest[C]],
    ) -> None:
        """Take idle connections that are to be closed; they keep their slots till then."""
        for connection in tuple(self.idle):
            if reason := close_reason(connection):
                request = PoolRequest(
                    pool=pool, connection=connection, close_reason=reason
                )
                taken.append(request)
                self.busy.add(request)
                self.idle.remove(connection)

    def wait_for_others(self, request: PoolRequest[C], now: float) -> bool:
        """Queue a request again that the relay refused, unless nothing else is open."""
        others = self.size - (request in self.busy)
        if not others:
            return False
        self.relay_limit, self.relay_limit_until = others, now + RELAY_LIMIT_SECONDS
        request.force_new = False
        request.ready.clear()
        self.busy.discard(request)
        self.acquire(request, now)
        return True

    def note_opened(self, now: float) -> None:
        """Forget the relay's limit if it has just allowed more."""
        if self.relay_limit is not None and self.size > self.relay_limit:
            self.relay_limit = None
            self._serve(now)

    def clear(self) -> list[PooledConnection[C]]:
        """Send away all that wait; return what was idle."""
        idle, self.idle = self.idle, []
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            request.ready.set()
        return idle

    def count_messages(self) -> int:
        """Return how many messages were begun on leased connections since last time."""
        held = [request.connection for request in self.busy if request.connection]
        return sum(connection.count_messages() for connection in held)

    def _serve(self, now: float) -> None:
        """Give the free slots to those who wait longest."""
        while self.waiting:
            request = self.waiting[0]
            if request not in self.busy and not self._grant(request, now):
                return
            # Now, and again after an interrupt: none with a slot may wait on.
            request.ready.set()
            self.waiting.remove(request)

    def _grant(self, request: PoolRequest[C], now: float) -> bool:
        connection = None if request.force_new else self._take_newest(now)
        if connection is None and self.size >= self.capacity(now):
            if not self.idle:
                return False
            connection = self.idle.pop(0)  # is closed to make room for a new one
        request.connection = connection
        self.busy.add(request)
        return True

    def _take_newest(self, now: float) -> PooledConnection[C] | None:
        for number in reversed(range(len(self.idle))):
            if not self.idle[number].limit_reached(now):
                return self.idle.pop(number)
        return None


class _Locked(Generic[C]):
    """Locks a pool's slots for a `with` block; a broken lock is left with its slots."""

    __slots__ = ("_pool", "_seconds", "_slots")

    def __init__(self, pool: ConnectionPool[C], seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds

    def __enter__(self) -> _Slots[C]:
        self._slots = self._pool.slots
        while not self._slots.lock.acquire(timeout=self._seconds):
            self._pool.leave_broken(self._slots)
            self._slots = self._pool.slots
        return self._slots

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._slots.lock.release()


class ConnectionPool(Generic[C]):
    """Leases connections, made by `connect`, to one caller at a time.

    `connect(until, timeout)` returns a session that is ready before `until`, a moment of
    `clock`, taking at most `timeout` seconds for each step. At each return, `evict` adds
    the connections that are to be closed; by default those of this pool.
    """

    def __init__(
        self,
        connect: Callable[[float, float], C],
        config: PoolConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "",
        evict: Callable[[list[PoolRequest[C]]], None] | None = None,
    ) -> None:
        self.connect = connect
        self.config = config
        self.name = name
        #: The clock when a connection was last asked for.
        self.used_at = clock()
        #: The process that may write to the connections; reset_after_fork() changes it.
        self.pid = os.getpid()
        #: Replaced as a whole when their lock is broken, and after a fork.
        self.slots: _Slots[C] = _Slots(config.max_size)
        #: Why returned connections are not kept. Set once, by close() or after a fork.
        self.closed: CloseReason | None = None
        self._clock = clock
        self._evict = evict or self.take_expired
        self._numbers = itertools.count()
        #: Both change only while the slots are locked.
        self._stats = no_stats()
        self._closed_by: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """Return the number of slots in use: idle, leased, being opened or closed."""
        return self.slots.size

    @property
    def empty(self) -> bool:
        """Return whether nothing would be lost with the pool."""
        return not self.slots.size and not self.slots.waiting

    @property
    def idle_since(self) -> list[float]:
        """Return the pool's clock when each idle connection came back."""
        return [connection.idle_since for connection in tuple(self.slots.idle)]

    def __repr__(self) -> str:
        slots = self.slots
        state = " ".join(filter(None, ("ConnectionPool", self.name, self.closed)))
        return (
            f"<{state} idle={len(slots.idle)} in_use={len(slots.busy)} "
            f"waiting={len(slots.waiting)} max_size={slots.max_size}>"
        )

    @contextmanager
    def lease(
        self,
        *,
        seconds: float,
        timeout: float,
        force_new: bool = False,
        ignore_pool_timeout: bool = False,
    ) -> Iterator[PooledConnection[C]]:
        """Lease a live connection for the time of a `with` block.

        Waiting and testing take at most the pool's timeout, all together at most
        `seconds`, each step of connecting at most `timeout`. With `ignore_pool_timeout`
        the caller waits for `seconds` in a queue of any length; with `force_new` it gets
        a connection that was opened now. Raises PoolTimeout, PoolClosed and what
        `connect` raises.
        """
        request = PoolRequest(
            pool=self,
            number=next(self._numbers),
            force_new=force_new,
            ignore_pool_timeout=ignore_pool_timeout,
        )
        try:
            yield self._obtain(request, seconds, timeout)
        finally:
            closing: list[PoolRequest[C]] = []
            try:
                self._finish(request, closing)
            except BaseException:
                self._finish(request, closing)  # interrupted: complete it first
                raise

    def take_expired(
        self, taken: list[PoolRequest[C]], kept_before: float = float("-inf")
    ) -> None:
        """Take idle connections at a limit, or as old as `kept_before`, to be closed."""
        now = self._clock()

        def close_reason(connection: PooledConnection[C]) -> CloseReason | None:
            if connection.idle_since <= kept_before:
                return CloseReason.SURPLUS
            return connection.limit_reached(now)

        if any(map(close_reason, tuple(self.slots.idle))):
            with self._locked() as slots:
                slots.take_idle(self, close_reason, taken)

    def close(
        self,
        reason: CloseReason = CloseReason.SHUTDOWN,
        seconds: float = LOCK_TIMEOUT,
    ) -> list[C]:
        """Fail all that wait and keep nothing more; return what was idle, to be closed.

        Connections in use are closed when they come back. The pool's lock is given up
        after so many seconds.
        """
        self.closed = reason
        with self._locked(seconds) as slots:
            idle = slots.clear()
            self._closed_by[reason.value] += len(idle)
        return [connection.session for connection in idle]

    def free(self, request: PoolRequest[C]) -> None:
        """Give back the slot of a connection that was closed."""
        now = self._clock()
        with self._locked() as slots:
            noted = self._note_closed(request)
            slots.release(request, now)
        if noted:
            self._log(request.close_reason)

    def reset_after_fork(self) -> None:
        """Close all connections in a forked process, without writing to them."""
        self.pid = os.getpid()
        self.closed = CloseReason.INHERITED
        self._stats, self._closed_by = no_stats(), Counter()
        held = [request.connection for request in self.slots.busy]
        self._replace_slots()
        for connection in filter(None, held):
            connection.session.close()

    def leave_broken(self, slots: _Slots[C]) -> None:
        """Begin anew, as the lock of these slots cannot be had.

        Idle connections are closed without a word, those in use when they come back;
        requests that wait queue again.
        """
        if slots is not self.slots:
            return  # another thread was faster
        dropped = self._replace_slots()
        with self._locked():
            self._closed_by[CloseReason.BROKEN.value] += dropped
        logger.warning(
            "%s: an interrupt broke the pool's lock: %d idle connections were dropped",
            self.name,
            dropped,
        )

    def _replace_slots(self) -> int:
        """Put new slots in place of the old; return how many connections were idle."""
        slots, self.slots = self.slots, _Slots(self.config.max_size)
        idle = tuple(slots.idle)
        for connection in idle:
            connection.session.close()
        for request in tuple(slots.waiting):
            request.ready.set()
        return len(idle)

    def count(self, event: Event) -> None:
        """Add one to a statistic; `retries` are counted by the sender."""
        with self._locked():
            self._stats[event] += 1

    def absorb(self, other: PoolStats) -> None:
        """Add what has happened in a pool that ends to this one's statistics."""
        with self._locked():
            add_events(self._stats, other)
            self._closed_by.update(other["closed"])

    def stats(self) -> PoolStats:
        """Return the state and what has happened so far."""
        with self._locked() as slots:
            self._stats["messages"] += slots.count_messages()
            return {
                **self._stats,
                "size": slots.size,
                "idle": len(slots.idle),
                "in_use": len(slots.busy),
                "waiting": len(slots.waiting),
                "closed": dict(self._closed_by),
            }

    def _locked(self, seconds: float = LOCK_TIMEOUT) -> _Locked[C]:
        return _Locked(self, seconds)

    # -- to a connection -----------------------------------------------------------------

    def _obtain(
        self, request: PoolRequest[C], seconds: float, timeout: float
    ) -> PooledConnection[C]:
        """Wait for a slot, and see to it that a live connection fills it."""
        self.used_at = request.asked_at = now = self._clock()
        request.wait_until = until = now + seconds
        if not request.ignore_pool_timeout:
            request.wait_until = min(until, now + self.config.timeout)
        self._enter(request)
        while True:
            self._wait(request)
            if connection := self._usable(request):
                return connection
            try:
                return self._open(request, until, timeout)
            except ConnectFailed as error:
                if not error.limits_connections or not self._wait_for_others(request):
                    raise

    def _enter(self, request: PoolRequest[C]) -> None:
        """Queue a request; raise PoolTimeout if too many wait."""
        limit = 0 if request.ignore_pool_timeout else self.config.max_waiting
        now = request.asked_at
        with self._locked() as slots:
            self._stats["requests"] += 1
            if slots.acquire(request, now):
                return
            if not limit or len(slots.waiting) <= limit:
                self._stats["waits"] += 1
                return
            slots.release(request, now)
            self._stats["timeouts"] += 1
        raise PoolTimeout(
            f"the queue for a connection to {self.name} is full, {limit} long (pool "
            "max_waiting): nothing was sent; send less at once or raise max_size"
        )

    def _wait(self, request: PoolRequest[C]) -> None:
        """Wait until the request has a slot; raise PoolTimeout, PoolClosed."""
        waits = not request.ready.is_set()
        while waits:
            since = self._clock()
            left = request.wait_until - since
            # Looks after itself now and then: an interrupt may have swallowed a wake-up.
            request.ready.wait(max(0.0, min(left, LOCK_TIMEOUT)))
            waits = not self._served(request, since, last=left <= LOCK_TIMEOUT)

    def _served(self, request: PoolRequest[C], since: float, *, last: bool) -> bool:
        """Return whether a request has a slot; else queue it again, but not at last."""
        now = self._clock()
        with self._locked() as slots:
            self._stats["wait_seconds"] += now - since
            if request in slots.busy:
                return True
            closed = self.closed and request not in slots.waiting
            last = last and not request.ready.is_set()
            if not closed and not last:
                request.ready.clear()
                return slots.acquire(request, now)
            # At once, so that nothing is handed to it any more.
            slots.release(request, now)
            self._stats["timeouts"] += last
            capacity = slots.capacity(now)
        if closed:
            raise PoolClosed(
                f"the pool of {self.name} was closed while this message waited for a "
                "connection: nothing was sent; send it again"
            )
        seconds = request.wait_until - request.asked_at
        raise PoolTimeout(
            f"no connection to {self.name} became free in {seconds:.3g} s, all {capacity} "
            "are in use (pool timeout, max_size): nothing was sent"
        )

    def _usable(self, request: PoolRequest[C]) -> PooledConnection[C] | None:
        """Return a live connection from the request's slot, or None to open one."""
        while connection := request.connection:
            reason = self._close_reason(request, connection)
            if reason is None:
                self.count("reused")
                return connection
            request.close_reason = reason
            _close([request], request.quit_by())
            now = self._clock()
            with self._locked() as slots:
                self._note_closed(request)
                slots.replace(request, now)
            self._log(reason)
        return None

    def _close_reason(
        self, request: PoolRequest[C], connection: PooledConnection[C]
    ) -> CloseReason | None:
        """Return why an idle connection cannot be leased, or None."""
        now = self._clock()
        session, ping_after = connection.session, self.config.ping_after
        if request.force_new:
            return CloseReason.REPLACED
        if reason := connection.limit_reached(now):
            return reason
        try:
            if not session.alive():
                return CloseReason.STALE
            if ping_after is None or now - connection.idle_since < ping_after:
                return None
            self.count("pings")
            if session.ping(min(PING_TIMEOUT, request.wait_until - now)):
                return None
        except BaseException:
            session.close()  # its answer may still come
            raise
        # Those that idled longer share its path, and most likely its fate.
        request.force_new = True
        self._drop_idle(connection.idle_since)
        return CloseReason.STALE

    def _drop_idle(self, kept_before: float) -> None:
        dropped: list[PoolRequest[C]] = []

        def close_reason(connection: PooledConnection[C]) -> CloseReason | None:
            return CloseReason.STALE if connection.idle_since <= kept_before else None

        try:
            with self._locked() as slots:
                slots.take_idle(self, close_reason, dropped)
        finally:
            close_and_free(dropped, until=0.0)

    def _open(
        self, request: PoolRequest[C], until: float, timeout: float
    ) -> PooledConnection[C]:
        try:
            session = self.connect(until, timeout)
        except BaseException:
            self.count("open_errors")
            raise
        try:
            now = self._clock()
            connection = PooledConnection.begin(session, self.config, now)
            with self._locked() as slots:
                request.connection = connection
                self._stats["opened"] += 1
                slots.note_opened(now)
        except BaseException:
            session.close()  # nobody holds it yet
            raise
        return connection

    def _wait_for_others(self, request: PoolRequest[C]) -> bool:
        """Queue a request that the relay refused; return False if nothing is open."""
        now = self._clock()
        with self._locked() as slots:
            waits = slots.wait_for_others(request, now)
            self._stats["waits"] += waits
            limit = slots.relay_limit
        if waits:
            logger.info(
                "%s: the relay refused another connection, %s at once are used for now",
                self.name,
                limit,
            )
        return waits

    # -- and back ------------------------------------------------------------------------

    def _finish(self, request: PoolRequest[C], closing: list[PoolRequest[C]]) -> None:
        """End a lease; close its connection, if need be, and those of `evict`."""
        try:
            self._give_back(request, closing)
            self._evict(closing)
        finally:
            if closing:
                close_and_free(closing, request.quit_by())

    def _give_back(
        self, request: PoolRequest[C], closing: list[PoolRequest[C]]
    ) -> None:
        """Keep or hand over the connection of a request, or add it to `closing`."""
        now = self._clock()
        connection, reason, resets = request.connection, None, 0
        if connection:
            connection.reused, connection.idle_since = True, now
            reason = self._discard_reason(connection, now)
            resets = not reason and connection.session.needs_rset
        with self._locked() as slots:
            if connection and request not in slots.busy:
                reason = CloseReason.BROKEN
            if connection:
                self._stats["messages"] += connection.count_messages()
                self._stats["resets"] += resets
            if not reason:
                slots.release(request, now)
        if reason:
            request.close_reason = reason
            closing.append(request)

    def _discard_reason(
        self, connection: PooledConnection[C], now: float
    ) -> CloseReason | None:
        """Return why a connection that comes back is not kept, or None."""
        if connection.discard_reason:
            return connection.discard_reason
        if not connection.session.reusable:
            return CloseReason.ERROR
        return self.closed or connection.limit_reached(now)

    def _note_closed(self, request: PoolRequest[C]) -> bool:
        """Count a connection that was closed, once; the slots are locked."""
        connection, request.connection = request.connection, None
        if connection and request.close_reason:
            self._closed_by[request.close_reason.value] += 1
        return bool(connection)

    def _log(self, reason: CloseReason | None) -> None:
        level = logging.INFO if reason in _WORTH_KNOWING else logging.DEBUG
        logger.log(level, "%s: a connection was closed (%s)", self.name, reason)


def close_and_free(requests: Sequence[PoolRequest[C]], until: float) -> None:
    """Close the connections of requests, of any pools, and give back their slots.

    Waits for answers to QUIT at most until that `time.monotonic()`.
    """
    try:
        _close(requests, until)
    finally:
        for request in requests:
            request.pool.free(request)


def _close(requests: Sequence[PoolRequest[C]], until: float) -> None:
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
