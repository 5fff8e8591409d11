"""A pool of connections: opens, tests, leases and closes them.

`Slots` decides under a lock who gets which connection; connecting, testing and closing
happen outside of it. The pool needs no thread: each lease closes at its end what has
expired.

A signal handler may raise between any two instructions (Ctrl-C, a task's time limit). So
a lease can be ended twice: the second time completes what the first left undone.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from django_lettermint.exceptions import ConnectFailed, PoolClosed, PoolTimeout

from .connection import (
    C,
    CloseReason,
    PooledConnection,
    PoolRequest,
    RequestState,
    Slots,
    close_and_free,
    close_sessions,
)
from .stats import Event, PoolStats, add_stats, no_stats

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

#: Seconds for the reply to NOOP.
PING_TIMEOUT = 5.0
#: Seconds for the lock of the slots. No thread waits while it holds the lock, so one that
#: cannot be acquired for so long is broken.
LOCK_TIMEOUT = 1.0

#: Reasons logged at INFO; the others are routine.
_UNUSUAL = {
    CloseReason.STALE,
    CloseReason.ERROR,
    CloseReason.REFUSED,
    CloseReason.LIMITED,
}

logger = logging.getLogger("django_lettermint")

T = TypeVar("T")


class ConnectionPool(Generic[C]):
    """Leases connections to one caller at a time.

    `connect(until, timeout)` returns a session that is ready for mail. It takes until
    `until`, by `clock`, and `timeout` seconds for each step, at most. At the end of each
    lease, `evict` adds the connections to close to its argument; by default those of
    this pool that have expired.
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
        #: When a connection was last requested, by `clock`. Never decreases.
        self.used_at = clock()
        #: The process that may write to the connections. Set by reset_after_fork().
        self.pid = os.getpid()
        #: Replaced as a whole if their lock is broken, and after a fork.
        self.slots: Slots[C] = Slots(config.max_size, no_stats(), clock)
        #: Why returned connections are closed; None while the pool is open. Set by
        #: close() and reset_after_fork(), never reset.
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
        """Return whether no slot is in use and no caller waits."""
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
        """Lease a live connection for a `with` block.

        Waiting and testing take at most the pool's timeout, everything together at most
        `seconds`, each step of connecting at most `timeout`. With `ignore_pool_timeout`
        the caller waits up to `seconds`, in a queue of any length. With `force_new` it
        gets a new connection. Raises PoolTimeout, PoolClosed and what `connect` raises.
        """
        now = self.used_at = self._clock()
        wait_seconds, max_waiting = seconds, 0
        if not ignore_pool_timeout:
            wait_seconds = min(seconds, self.config.timeout)
            max_waiting = self.config.max_waiting
        request = PoolRequest(
            pool=self,
            number=next(self._numbers),
            force_new=force_new,
            max_waiting=max_waiting,
            wait_seconds=wait_seconds,
            wait_until=now + wait_seconds,
        )
        try:
            yield self._obtain(request, now + seconds, timeout)
        finally:
            closing: list[PoolRequest[C]] = []
            try:
                self._finish(request, closing)
            except BaseException:  # an interrupt: complete the end first
                self._finish(request, closing)
                raise

    def take_expired(
        self,
        taken: list[PoolRequest[C]],
        kept_before: float = float("-inf"),
        age_reason: CloseReason = CloseReason.SURPLUS,
    ) -> list[float]:
        """Take idle connections out for closing, and add them to `taken`.

        Takes those that have reached a limit and, for `age_reason`, those that came back
        at `kept_before` or earlier. Returns when each of the others came back.
        """
        now, idle = self._clock(), tuple(self.slots.idle)
        if any(
            each.idle_until <= now or each.idle_since <= kept_before for each in idle
        ):
            self._locked(
                lambda slots: slots.take_idle(self, taken, kept_before, age_reason)
            )
            idle = tuple(self.slots.idle)
        return [each.idle_since for each in idle]

    def free(self, request: PoolRequest[C]) -> None:
        """End a request whose connection was closed."""
        if self._locked(lambda slots: slots.free(request)):
            self._log(request.close_reason)

    def close(
        self,
        reason: CloseReason = CloseReason.SHUTDOWN,
        seconds: float = LOCK_TIMEOUT,
    ) -> list[C]:
        """Keep no connection any more; return the idle ones, for the caller to close.

        Connections in use are closed when they come back. Callers that wait get
        PoolClosed. A lock that is not to be had in `seconds` is broken.
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
        """Replace slots whose lock is broken.

        Idle connections are closed without QUIT, connections in use when they come back.
        Waiting requests queue again.
        """
        if slots is not self.slots:
            return  # another thread has replaced them
        dropped = self._replace_slots(slots.stats)
        self._locked(lambda new: new.count_closed(CloseReason.BROKEN, dropped))
        logger.warning(
            "%s: an interrupt broke the pool's lock; idle connections dropped: %d",
            self.name,
            len(dropped),
        )

    def count(self, event: Event) -> None:
        """Add one to a counter of the statistics."""
        self._locked(lambda slots: slots.count(event))

    def limit_to_open(self) -> bool:
        """Open no further connection for some minutes; return False if none is open.

        For a relay that accepts no other one: callers wait for those that are open.
        """
        return self._locked(lambda slots: slots.limit_to_open())

    def lift_limit(self) -> None:
        """Forget that the relay seemed to limit connections."""
        self._locked(lambda slots: slots.lift_limit())

    def absorb(self, other: PoolStats) -> None:
        """Add the counters of another pool to this one's."""
        self._locked(lambda slots: add_stats(slots.stats, other))

    def stats(self) -> PoolStats:
        """Return the state and the counters."""
        return self._locked(lambda slots: slots.report())

    # -- the slots -----------------------------------------------------------------------

    def _locked(self, act: Callable[[Slots[C]], T], seconds: float = LOCK_TIMEOUT) -> T:
        """Lock the slots, call `act` with them, and return its result.

        Slots whose lock cannot be acquired are replaced. So are those that this thread
        has locked already, which happens if a signal handler sends mail.

        The lock is acquired within `try`, as its release tells whether this thread has
        it. A `with` block can be interrupted between its lock and its first line, and
        CPython 3.12 to 3.15 may skip a `finally` when interrupted at the end of a loop:
        so the loops are in `act`, a call within.
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
            try:  # noqa: SIM105 - suppress() could be interrupted as well
                slots.lock.release()
            except RuntimeError:
                pass  # not acquired

    def _replace_slots(self, stats: PoolStats) -> Sequence[PooledConnection[C]]:
        """Replace the slots, close what was idle, and return that."""
        slots = self.slots
        self.slots = Slots(slots.max_size, stats, slots.clock)
        idle = tuple(slots.idle)
        for connection in idle:
            connection.session.close()
        for request in tuple(slots.waiting):
            request.wake_ups.put(None)
        return idle

    # -- the beginning of a lease --------------------------------------------------------

    def _obtain(
        self, request: PoolRequest[C], until: float, timeout: float
    ) -> PooledConnection[C]:
        """Wait for a slot, and return its live connection or a new one."""
        state = self._locked(lambda slots: slots.enter(request))
        if state is RequestState.ENDED:
            raise PoolTimeout(
                f"the queue for a connection to {self.name} is full, "
                f"{request.max_waiting} long (pool max_waiting): nothing was sent; send "
                "less at once or raise max_size"
            )
        while True:
            while state is RequestState.WAITING:
                state = self._wait(request)
            while connection := request.connection:
                reason = self._test(request, connection)
                if reason is None:
                    return connection
                self._replace(request, reason)
            try:
                return self._open(request, until, timeout)
            except ConnectFailed as error:
                if not error.limits_connections:
                    raise
                state = self._wait_for_others(request)
                if state is RequestState.ENDED:
                    raise

    def _wait(self, request: PoolRequest[C]) -> RequestState:
        """Wait for a slot, not much longer than a second; raise PoolTimeout, PoolClosed."""
        since = self._clock()
        left = request.wait_until - since
        # Not longer, as an interrupt may have lost the wake-up.
        woken = request.wait(min(left, LOCK_TIMEOUT))
        last = bool(self.closed) or (left <= LOCK_TIMEOUT and not woken)
        state = self._locked(lambda slots: slots.recheck(request, since, last=last))
        if state is not RequestState.ENDED:
            return state
        if self.closed:
            raise PoolClosed(
                f"the pool of {self.name} was closed while this message waited for a "
                "connection: nothing was sent; send it again"
            )
        raise PoolTimeout(
            f"no connection to {self.name} became free in {request.wait_seconds:.3g} s, "
            f"all {self.slots.capacity()} are in use (pool timeout, max_size): nothing "
            "was sent"
        )

    def _test(
        self, request: PoolRequest[C], connection: PooledConnection[C]
    ) -> CloseReason | None:
        """Test an idle connection; return why it cannot be leased, or None."""
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
            session.close()  # the reply may still come
        except BaseException:  # an interrupt: likewise
            session.close()
            raise
        # Those that were idle for longer took the same path: most likely they are dead.
        request.force_new = True
        self._close_idle(connection.idle_since)
        return CloseReason.STALE

    def _close_idle(self, since: float) -> None:
        """Close connections that have been idle since that time or longer."""
        stale: list[PoolRequest[C]] = []
        try:
            self.take_expired(stale, since, CloseReason.STALE)
            close_and_free(stale, until=0.0)
        except BaseException:  # an interrupt: complete it first
            close_and_free(stale, until=0.0)
            raise

    def _replace(self, request: PoolRequest[C], reason: CloseReason) -> None:
        """Close the connection of a request, which gets another idle one if any."""
        request.close_reason = reason
        close_sessions([request], request.quit_by())
        self._locked(lambda slots: slots.replace(request))
        self._log(reason)

    def _open(
        self, request: PoolRequest[C], until: float, timeout: float
    ) -> PooledConnection[C]:
        try:
            session = self.connect(until, timeout)
        except BaseException:  # interrupts count as well
            self.count("open_errors")
            raise
        try:
            connection = PooledConnection.for_session(
                session, self.config, self._clock()
            )
            self._locked(lambda slots: slots.note_opened(request, connection))
        except BaseException:  # an interrupt: no request holds the session yet
            session.close()
            raise
        return connection

    def _wait_for_others(self, request: PoolRequest[C]) -> RequestState:
        """Queue a request again that the relay refused, unless nothing else is open."""
        state = self._locked(lambda slots: slots.wait_for_others(request))
        if state is not RequestState.ENDED:
            logger.info(
                "%s: the relay refused another connection, %s at once are used for now",
                self.name,
                self.slots.relay_limit,
            )
        return state

    # -- the end of a lease --------------------------------------------------------------

    def _finish(self, request: PoolRequest[C], closing: list[PoolRequest[C]]) -> None:
        """Keep or hand over the connection of a lease, or close it.

        Closes what `evict` finds as well. If interrupted, it is called once more, with
        the same list.
        """
        try:
            if connection := request.connection:
                reason = connection.end_lease(self._clock())
                request.close_reason = reason or self.closed
            if not self._locked(lambda slots: slots.release(request)):
                closing.append(request)
            self._evict(closing)
        finally:
            if closing:
                close_and_free(closing, request.quit_by())

    def _log(self, reason: CloseReason | None) -> None:
        level = logging.INFO if reason in _UNUSUAL else logging.DEBUG
        logger.log(level, "%s: a connection was closed (%s)", self.name, reason)
