"""A pool of connections: opens, tests, leases and closes them.

`Slots` decides who gets what, while it is locked; connecting, testing and closing happen
outside of that. No thread is needed: what has expired is noticed at each return.

A signal handler may raise between any two instructions (Ctrl-C, a task's time limit), so
whatever ends a lease can be run twice: the same call then completes what it had begun.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from django_lettermint.exceptions import ConnectFailed, PoolClosed, PoolTimeout

from .connection import (
    C,
    CloseReason,
    PooledConnection,
    PoolRequest,
    Slots,
    close_and_free,
    close_sessions,
)
from .stats import Event, PoolStats, add_stats, no_stats

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

#: Seconds for the answer of a connection that has idled longer than `ping_after`.
PING_TIMEOUT = 5.0
#: Seconds for the lock of the slots. Nothing waits while it is held, so a lock that cannot
#: be had for so long is broken.
LOCK_TIMEOUT = 1.0

#: Reasons that operators want to know of; the others are routine.
_UNUSUAL = {
    CloseReason.STALE,
    CloseReason.ERROR,
    CloseReason.REFUSED,
    CloseReason.LIMITED,
}

logger = logging.getLogger("django_lettermint")

T = TypeVar("T")


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
        evict: Callable[[list[PoolRequest[C]]], object] | None = None,
    ) -> None:
        self.connect = connect
        self.config = config
        self.name = name
        #: The clock when a connection was last asked for.
        self.used_at = clock()
        #: The process that may write to the connections; reset_after_fork() changes it.
        self.pid = os.getpid()
        #: Replaced as a whole when their lock is broken, and after a fork.
        self.slots: Slots[C] = Slots(config.max_size, no_stats(), clock)
        #: Why returned connections are not kept. Set once, by close() or after a fork.
        self.closed: CloseReason | None = None
        self._clock = clock
        self._evict = evict or self.take_expired
        self._numbers = itertools.count()

    @property
    def size(self) -> int:
        """Return the number of slots in use: idle, leased, being opened or closed."""
        return self.slots.size

    @property
    def empty(self) -> bool:
        """Return whether nothing would be lost with the pool."""
        return not self.slots.size and not self.slots.waiting

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
        self,
        taken: list[PoolRequest[C]],
        kept_before: float = float("-inf"),
        reason: CloseReason = CloseReason.SURPLUS,
    ) -> list[float]:
        """Take idle connections to be closed: at a limit, or kept before that moment.

        Return the pool's clock when each of the others came back.
        """
        now, idle = self._clock(), tuple(self.slots.idle)
        if any(
            each.idle_until <= now or each.idle_since <= kept_before for each in idle
        ):
            self._locked(
                lambda slots: slots.take_idle(self, taken, kept_before, reason)
            )
            idle = tuple(self.slots.idle)
        return [each.idle_since for each in idle]

    def free(self, request: PoolRequest[C]) -> None:
        """Give back the slot of a connection that was closed."""
        if self._locked(lambda slots: slots.free(request)):
            self._log(request.close_reason)

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
        idle = self._locked(lambda slots: slots.clear(reason), seconds)
        return [connection.session for connection in idle]

    def reset_after_fork(self) -> None:
        """Close all connections in a forked process, without writing to them."""
        self.pid = os.getpid()
        self.closed = CloseReason.INHERITED
        held = [request.connection for request in self.slots.busy]
        self._replace_slots(no_stats())
        for connection in filter(None, held):
            connection.session.close()

    def leave_broken(self, slots: Slots[C]) -> None:
        """Begin anew, as the lock of these slots cannot be had.

        Idle connections are closed without QUIT, and connections in use when they come
        back. Requests that wait queue again.
        """
        if slots is not self.slots:
            return  # another thread was faster
        dropped = self._replace_slots(slots.stats)
        self._locked(lambda new: new.count_closed(CloseReason.BROKEN, dropped))
        logger.warning(
            "%s: an interrupt broke the pool's lock; idle connections dropped: %d",
            self.name,
            len(dropped),
        )

    def count(self, event: Event) -> None:
        """Add one to a statistic; `retries` are counted by the sender."""
        self._locked(lambda slots: slots.count(event))

    def limit_to_open(self) -> bool:
        """Let senders wait for the connections that are open, for some minutes.

        For a relay that accepts no other one. Return False if none is open.
        """
        return self._locked(lambda slots: slots.limit_to_open())

    def absorb(self, other: PoolStats) -> None:
        """Add what has happened in a pool that ends to this one's statistics."""
        self._locked(lambda slots: add_stats(slots.stats, other))

    def stats(self) -> PoolStats:
        """Return the state and what has happened so far."""
        return self._locked(lambda slots: slots.report())

    # -- the slots -----------------------------------------------------------------------

    def _locked(self, act: Callable[[Slots[C]], T], seconds: float = LOCK_TIMEOUT) -> T:
        """Return what `act` returns, called while the slots are locked.

        A lock that cannot be had is left, with its slots. So is one that this thread
        holds, as when a signal handler sends mail. An interrupt leaves no lock behind:
        after acquire() within `try`, an RLock knows whether this thread has it. (A `with`
        block or a generator can be interrupted between its lock and its first line; and
        CPython 3.12 to 3.15 lose the way to `finally` at the end of a loop within.)
        """
        slots = self.slots
        try:
            while not slots.lock.acquire(timeout=seconds) or slots.entered:
                self.leave_broken(slots)
                slots = self.slots
            slots.entered = True
            try:
                return act(slots)
            finally:
                slots.entered = False
        finally:
            try:  # noqa: SIM105 - a `with` block would be one more to interrupt
                slots.lock.release()
            except RuntimeError:
                pass  # not acquired

    def _replace_slots(self, stats: PoolStats) -> Sequence[PooledConnection[C]]:
        """Put new slots in place of the old; return the connections that were idle."""
        slots = self.slots
        self.slots = Slots(slots.max_size, stats, slots.clock)
        idle = tuple(slots.idle)
        for connection in idle:
            connection.session.close()
        for request in tuple(slots.waiting):
            request.wake()
        return idle

    # -- to a connection -----------------------------------------------------------------

    def _obtain(
        self, request: PoolRequest[C], seconds: float, timeout: float
    ) -> PooledConnection[C]:
        """Wait for a slot, and see to it that a live connection fills it."""
        self.used_at = request.asked_at = now = self._clock()
        request.wait_until = until = now + seconds
        if not request.ignore_pool_timeout:
            request.wait_until = min(until, now + self.config.timeout)
        limit = 0 if request.ignore_pool_timeout else self.config.max_waiting
        if not self._locked(lambda slots: slots.enter(request, limit)):
            raise PoolTimeout(
                f"the queue for a connection to {self.name} is full, {limit} long (pool "
                "max_waiting): nothing was sent; send less at once or raise max_size"
            )
        while True:
            if not request.ready:
                self._wait(request)
            if connection := self._usable(request):
                return connection
            try:
                return self._open(request, until, timeout)
            except ConnectFailed as error:
                if not error.limits_connections or not self._wait_for_others(request):
                    raise

    def _wait(self, request: PoolRequest[C]) -> None:
        """Wait until the request has a slot; raise PoolTimeout, PoolClosed."""
        served: bool | None = False
        while served is False:
            since = self._clock()
            left = request.wait_until - since
            # Not longer: an interrupt may have lost the wake-up.
            request.wait(min(left, LOCK_TIMEOUT))
            served = self._recheck(request, since, left)
        if served is None:
            self._raise_unserved(request)

    def _recheck(
        self, request: PoolRequest[C], since: float, left: float
    ) -> bool | None:
        last = bool(self.closed) or (left <= LOCK_TIMEOUT and not request.ready)
        return self._locked(lambda slots: slots.recheck(request, since, last=last))

    def _raise_unserved(self, request: PoolRequest[C]) -> NoReturn:
        if self.closed:
            raise PoolClosed(
                f"the pool of {self.name} was closed while this message waited for a "
                "connection: nothing was sent; send it again"
            )
        seconds = request.wait_until - request.asked_at
        capacity = self.slots.capacity()
        raise PoolTimeout(
            f"no connection to {self.name} became free in {seconds:.3g} s, all {capacity} "
            "are in use (pool timeout, max_size): nothing was sent"
        )

    def _usable(self, request: PoolRequest[C]) -> PooledConnection[C] | None:
        """Return a live connection from the request's slot, or None to open one."""
        while connection := request.connection:
            reason = self._close_reason(request, connection)
            if reason is None:
                return connection
            request.close_reason = reason
            close_sessions([request], request.quit_by())
            self._locked(lambda slots: slots.replace(request))
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
        if now >= connection.idle_until:
            return connection.limit_reached(now)
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
        dropped: list[PoolRequest[C]] = []
        try:
            self.take_expired(dropped, connection.idle_since, CloseReason.STALE)
        finally:
            close_and_free(dropped, until=0.0)
        return CloseReason.STALE

    def _open(
        self, request: PoolRequest[C], until: float, timeout: float
    ) -> PooledConnection[C]:
        try:
            session = self.connect(until, timeout)
        except BaseException:
            self.count("open_errors")
            raise
        try:
            connection = PooledConnection.begin(session, self.config, self._clock())
            self._locked(lambda slots: slots.note_opened(request, connection))
        except BaseException:
            session.close()  # no request holds it yet
            raise
        return connection

    def _wait_for_others(self, request: PoolRequest[C]) -> bool:
        """Queue a request that the relay refused; return False if nothing is open."""
        waits = self._locked(lambda slots: slots.wait_for_others(request))
        if waits:
            logger.info(
                "%s: the relay refused another connection, %s at once are used for now",
                self.name,
                self.slots.relay_limit,
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
        resets = 0
        if connection := request.connection:
            reason = connection.end_lease(self._clock())
            request.close_reason = reason or self.closed
            resets = connection.session.needs_rset
        if not self._locked(lambda slots: slots.give_back(request, resets)):
            closing.append(request)

    def _log(self, reason: CloseReason | None) -> None:
        level = logging.INFO if reason in _UNUSUAL else logging.DEBUG
        logger.log(level, "%s: a connection was closed (%s)", self.name, reason)
