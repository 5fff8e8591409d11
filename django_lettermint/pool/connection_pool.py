"""A pool of connections: dials, probes, lends and closes them.

`slots` decides who gets what, under the lock; dialling, probing and closing happen
outside it. No thread is needed: what has expired is noticed at each lease and return.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic

from django_lettermint.exceptions import PoolClosed, PoolTimeout

from .connection import GOODBYE_TIMEOUT, C, Lease
from .slots import Claim, Slots
from .stats import Event, PoolStats, no_stats

if TYPE_CHECKING:
    from django_lettermint.conf import PoolConfig

#: Seconds for the answer of a connection that has idled longer than `ping_after`.
PING_TIMEOUT = 5.0


class ConnectionPool(Generic[C]):
    """Lends connections made by `connect`, which gets the moment to be ready by.

    With `park=False` it lends without limit and closes on return.
    """

    def __init__(
        self,
        connect: Callable[[float], C],
        config: PoolConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        park: bool = True,
        name: str = "",
    ) -> None:
        self.config = config
        self.name = name
        self._connect = connect
        self._clock = clock
        #: The process that may use the connections.
        self._pid = os.getpid()
        #: Why connections that come back are not kept; empty while they are.
        self._unkept = "" if park else "unpooled"
        #: Guards all below; nothing that could wait happens under it.
        self._lock = threading.Lock()
        self._slots: Slots[C] = Slots(config.max_size if park else float("inf"))
        self._stats = no_stats()
        self._closed_by: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """Return the number of slots in use: idle, lent, being dialled or closed."""
        return self._slots.size

    @property
    def idle(self) -> int:
        """Return the number of parked connections."""
        return len(self._slots.idle)

    @property
    def empty(self) -> bool:
        """Return whether nothing would be lost with the pool."""
        return not self.size and not self._slots.waiting

    def __repr__(self) -> str:
        slots = self._slots
        state = " ".join(filter(None, ("ConnectionPool", self.name, self._unkept)))
        return (
            f"<{state} idle={len(slots.idle)} in_use={len(slots.busy)} "
            f"waiting={len(slots.waiting)} max_size={slots.max_size}>"
        )

    @contextmanager
    def lease(
        self,
        *,
        seconds: float = float("inf"),
        fresh: bool = False,
        patient: bool = False,
    ) -> Iterator[Lease[C]]:
        """Lend a live connection for the time of a `with` block.

        A `fresh` one is dialled now. Waiting and probing take at most the pool's
        timeout, and all together at most `seconds`; a `patient` caller waits that long
        in any queue. Raises PoolTimeout, PoolClosed and what `connect` raises.
        """
        self.expire()
        claim: Claim[C] = Claim(fresh, patient)
        with self._ending([claim]):
            yield self._obtain(claim, seconds)

    def expire(self, surplus: float = float("-inf")) -> None:
        """Close idle connections whose time is over, or that were parked by `surplus`."""
        if not self._slots.idle:
            return
        now = self._clock()
        claims: list[Claim[C]] = []
        with self._ending(claims), self._lock:
            for lease in tuple(self._slots.idle):
                parked_early = "surplus" if lease.idle_since <= surplus else ""
                if fault := lease.limit_reached(now) or parked_early:
                    claims.append(Claim(lease=lease, fault=fault))
                    self._slots.withdraw(claims[-1])

    def parked_at(self) -> list[float]:
        """Return the pool's clock when each idle connection was parked."""
        with self._lock:
            return [lease.idle_since for lease in self._slots.idle]

    def close(self) -> list[C]:
        """Fail all waiters and keep nothing more; return what was idle, to be closed.

        Connections in use are closed when they come back.
        """
        with self._lock:
            self._unkept = "shutdown"
            idle = self._slots.clear()
            self._closed_by.update("shutdown" for _ in idle)
        return [lease.connection for lease in idle]

    def abandon(self) -> None:
        """Drop all connections in a forked process, without an octet to the server."""
        self._pid = os.getpid()
        self._unkept = "inherited"
        # The lock may have been held by a thread that does not exist here.
        self._lock = threading.Lock()
        inherited, self._slots = self._slots, Slots(self._slots.max_size)
        leases = [claim.lease for claim in inherited.busy if claim.lease]
        for lease in (*inherited.idle, *leases):
            lease.connection.close()

    def count(self, event: Event) -> None:
        """Add one to a statistic; retries are seen by others."""
        with self._lock:
            self._stats[event] += 1

    def stats(self) -> PoolStats:
        """Return the state and what has happened so far."""
        slots = self._slots
        with self._lock:
            for claim in slots.busy:
                if claim.lease:
                    self._stats["messages"] += claim.lease.count_messages()
            return {
                **self._stats,
                "size": slots.size,
                "idle": len(slots.idle),
                "in_use": len(slots.busy),
                "waiting": len(slots.waiting),
                "closed": dict(self._closed_by),
            }

    # -- to a connection -----------------------------------------------------------------

    def _obtain(self, claim: Claim[C], seconds: float) -> Lease[C]:
        """Wait for a slot, and see to it that a live connection fills it."""
        now = self._clock()
        until = now + (seconds if claim.patient else min(seconds, self.config.timeout))
        if not self._served_at_once(claim):
            self._wait(claim, until)
        while lease := claim.lease:
            fault = "replaced" if claim.fresh else self._find_fault(lease, until)
            if not fault:
                self.count("reused")
                return lease
            lease.dismiss(time.monotonic() + GOODBYE_TIMEOUT)
            with self._lock:
                self._closed_by[fault] += 1
                self._slots.exchange(claim)
        return self._dial(claim, now + seconds)

    def _served_at_once(self, claim: Claim[C]) -> bool:
        limit, waiting = self.config.max_waiting, self._slots.waiting
        with self._lock:
            self._stats["requests"] += 1
            if self._slots.enter(claim):
                return True
            if claim.patient or not limit or len(waiting) <= limit:
                self._stats["waits"] += 1
                return False
            waiting.pop()
            self._stats["timeouts"] += 1
        raise PoolTimeout(
            f"the queue for a connection to {self.name} is full, {limit} long (pool "
            "max_waiting): nothing was sent; send less at once or raise max_size"
        )

    def _wait(self, claim: Claim[C], until: float) -> None:
        began = self._clock()
        seconds = max(0.0, until - began)
        claim.decided.wait(min(seconds, threading.TIMEOUT_MAX))
        slots = self._slots
        with self._lock:
            self._stats["wait_seconds"] += self._clock() - began
            if claim in slots.busy:
                return
            if claim not in slots.waiting:
                raise PoolClosed(
                    f"the pool of {self.name} was closed while this message waited for "
                    "a connection: nothing was sent; send it again"
                )
            # At once, so that nothing is handed to it any more.
            slots.waiting.remove(claim)
            self._stats["timeouts"] += 1
        raise PoolTimeout(
            f"no connection to {self.name} became free in {seconds:.3g} s, all "
            f"{slots.max_size} are in use (pool timeout, max_size): nothing was sent"
        )

    def _find_fault(self, lease: Lease[C], until: float) -> str:
        """Return why a parked connection cannot be lent, or an empty string."""
        now = self._clock()
        if fault := lease.limit_reached(now):
            return fault
        connection, ping_after = lease.connection, self.config.ping_after
        try:
            alive = connection.alive()
            idle = now - lease.idle_since
            if alive and ping_after is not None and idle >= ping_after:
                self.count("pings")
                alive = connection.ping(min(PING_TIMEOUT, until - now))
        except BaseException:
            connection.close()  # its answer may still come
            raise
        if alive:
            return ""
        connection.close()
        return "stale"

    def _dial(self, claim: Claim[C], until: float) -> Lease[C]:
        try:
            connection = self._connect(until)
        except BaseException:
            self.count("open_errors")
            raise
        try:
            lease = Lease.begin(connection, self.config, self._clock())
            with self._lock:
                claim.lease = lease
                self._stats["opened"] += 1
        except BaseException:
            connection.close()  # it is in nobody's hands yet
            raise
        return lease

    # -- and back ------------------------------------------------------------------------

    @contextmanager
    def _ending(self, claims: list[Claim[C]]) -> Iterator[None]:
        """End all these claims with a block, whatever happens in it."""
        try:
            yield
        finally:
            try:
                self._end_all(claims)
            except BaseException:
                # An interrupt may strike between any two instructions: finish first.
                self._end_all(claims)
                raise

    def _end_all(self, claims: list[Claim[C]]) -> None:
        until = time.monotonic() + GOODBYE_TIMEOUT
        for claim in claims:
            self._end(claim, until)

    def _end(self, claim: Claim[C], until: float) -> None:
        """Park, hand over or close what a claim holds; nothing if that was done before."""
        if self._pid != os.getpid():
            self.abandon()  # forked by something that does not run Python's hooks
        with self._lock:
            lease = claim.lease if claim in self._slots.busy else None
            fault = self._take_back(lease, claim.fault) if lease else ""
            if lease is None or not fault:
                self._slots.leave(claim)
                return
            self._closed_by[fault] += 1
            claim.lease = None
        # In its slot, and heard by the server, which is never to see more than
        # `max_size`.
        lease.dismiss(until)
        with self._lock:
            self._slots.leave(claim)

    def _take_back(self, lease: Lease[C], fault: str) -> str:
        """Note what a connection has done, and return why it is not kept, if so."""
        self._stats["messages"] += lease.count_messages()
        lease.reused, lease.idle_since = True, self._clock()
        if not lease.connection.reusable:
            return fault or "error"
        fault = fault or self._unkept or lease.limit_reached(lease.idle_since)
        self._stats["resets"] += not fault and lease.connection.dirty
        return fault
