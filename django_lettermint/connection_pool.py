"""A pool of connections: who may use which, who waits, and when one is closed.

Whoever wants a connection makes a claim. A claim waits, then holds a slot, then ends:

    waiting ──► busy: leave to dial ──► busy: a connection ──► ended
       ▲                                      ▲       │
     claim                                    └─ idle ◄┘ parked, if still good

Idle connections and busy claims are the slots, never more than `max_size` together.
Waiting claims are served first come first served; idle connections are lent newest
first, so that the surplus grows old and is closed.

Each decision is taken under the lock; dialling, probing and closing happen outside it.
No thread is needed: what has expired is noticed at each lease and each return.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic

from .exceptions import PoolClosed, PoolTimeout
from .lease import C, Lease
from .pool_stats import Event, PoolStats, no_stats

if TYPE_CHECKING:
    from .conf import PoolConfig

#: Seconds for the answer of a connection that has idled longer than `ping_after`.
PING_TIMEOUT = 5.0
#: Seconds for the server to take note that a connection ends.
GOODBYE_TIMEOUT = 0.5


@dataclass(slots=True, eq=False)
class _Claim(Generic[C]):
    """One caller's way to a connection and back; changed under the pool's lock."""

    #: Only a connection that is dialled now will do.
    fresh: bool = False
    #: It neither minds the pool's timeout nor how many wait.
    patient: bool = False
    #: The connection of its slot; a busy claim without one has leave to dial.
    lease: Lease[C] | None = None
    #: Why that connection is not to be parked; empty if it is for `_fault()` to say.
    fault: str = ""
    #: Wakes the caller: there is a slot, or the pool was closed.
    decided: threading.Event = field(default_factory=threading.Event)


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
        self._max_size = config.max_size if park else float("inf")
        #: The process that may use the connections.
        self._pid = os.getpid()
        #: Why connections that come back are not kept; empty while they are.
        self._unkept = "" if park else "unpooled"
        self._lock = threading.Lock()
        #: Parked connections, oldest first. In nobody's hands; empty while any waits.
        self._idle: list[Lease[C]] = []
        #: Claims that hold a slot. With the idle connections, at most `max_size`.
        self._busy: set[_Claim[C]] = set()
        #: Claims without a slot, in the order of their arrival.
        self._waiting: deque[_Claim[C]] = deque()
        self._stats = no_stats()
        self._closed_by: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """Return the number of slots in use: idle, leased or dialling."""
        return len(self._idle) + len(self._busy)

    @property
    def empty(self) -> bool:
        """Return whether nothing would be lost with the pool."""
        return not self.size and not self._waiting

    def __repr__(self) -> str:
        state = f" {self._unkept}" if self._unkept else ""
        return (
            f"<ConnectionPool {self.name}{state} idle={len(self._idle)} in_use="
            f"{len(self._busy)} waiting={len(self._waiting)} max_size={self._max_size}>"
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
        claim: _Claim[C] = _Claim(fresh, patient)
        with self._ending([claim]):
            yield self._obtain(claim, seconds)

    def expire(self, surplus: float = float("-inf")) -> None:
        """Close idle connections whose time is over, or that were parked by `surplus`."""
        now = self._clock()
        faults = {
            lease: fault
            for lease in tuple(self._idle)
            if (fault := lease.limit_reached(now))
            or (fault := "surplus" if lease.idle_since <= surplus else "")
        }
        if not faults:
            return
        claims: list[_Claim[C]] = []
        with self._ending(claims), self._lock:
            for lease in faults.keys() & set(self._idle):
                claims.append(_Claim(lease=lease, fault=faults[lease]))
                self._idle.remove(lease)
            self._busy.update(claims)

    def parked_at(self) -> list[float]:
        """Return the pool's clock when each idle connection was parked."""
        with self._lock:
            return [lease.idle_since for lease in self._idle]

    def close(self) -> list[C]:
        """Fail all waiters and keep nothing more; return what was idle, to be closed.

        Connections in use are closed when they come back.
        """
        with self._lock:
            self._unkept = "shutdown"
            idle, self._idle = self._idle, []
            self._closed_by.update("shutdown" for _ in idle)
            for claim in self._waiting:
                claim.decided.set()
            self._waiting.clear()
        return [lease.connection for lease in idle]

    def abandon(self) -> None:
        """Drop all connections in a forked process, without an octet to the server."""
        self._pid = os.getpid()
        self._unkept = "inherited"
        # The lock may have been held by a thread that does not exist here.
        self._lock = threading.Lock()
        leases = [*self._idle, *(claim.lease for claim in self._busy if claim.lease)]
        self._idle.clear()
        self._busy.clear()
        self._waiting.clear()
        for lease in leases:
            lease.connection.close()

    def count(self, event: Event) -> None:
        """Add one to a statistic; retries are seen by others."""
        with self._lock:
            self._stats[event] += 1

    def stats(self) -> PoolStats:
        """Return the state and what has happened so far."""
        with self._lock:
            for claim in self._busy:
                if claim.lease:
                    self._stats["messages"] += claim.lease.count_messages()
            return {
                **self._stats,
                "size": self.size,
                "idle": len(self._idle),
                "in_use": len(self._busy),
                "waiting": len(self._waiting),
                "closed": dict(self._closed_by),
            }

    # -- under the lock ------------------------------------------------------------------

    def _serve(self) -> None:
        """Give the free slots to those who wait longest."""
        while self._waiting:
            claim = self._waiting[0]
            if self._idle and not claim.fresh:
                claim.lease = self._idle.pop()
            elif self.size >= self._max_size:
                if not self._idle:
                    return
                # Full, but only a new connection will do: the oldest makes room.
                claim.lease = self._idle.pop(0)
            self._busy.add(claim)
            self._waiting.popleft()
            claim.decided.set()

    def _free(self, claim: _Claim[C]) -> None:
        """Take a slot, or a place in the queue, back."""
        if claim in self._busy:
            self._busy.remove(claim)
            if claim.lease:
                self._idle.append(claim.lease)
            if self._waiting and self._waiting[0] is claim:
                self._waiting.popleft()  # _serve() was interrupted
        elif claim in self._waiting:
            self._waiting.remove(claim)
        self._serve()

    def _fault(self, claim: _Claim[C], lease: Lease[C]) -> str:
        """Return why a connection that comes back is not kept, or an empty string."""
        self._stats["messages"] += lease.count_messages()
        lease.reused, lease.idle_since = True, self._clock()
        fault = claim.fault or ("" if lease.connection.reusable else "error")
        return fault or self._unkept or lease.limit_reached(lease.idle_since)

    # -- outside the lock ----------------------------------------------------------------

    def _obtain(self, claim: _Claim[C], seconds: float) -> Lease[C]:
        """Wait for a slot, and see to it that a live connection fills it."""
        now = self._clock()
        until = now + (seconds if claim.patient else min(seconds, self.config.timeout))
        if not self._served_at_once(claim):
            self._wait(claim, until)
        while lease := claim.lease:
            claim.fault = "error"  # should a probe be cut short
            fault = "replaced" if claim.fresh else self._find_fault(lease, until)
            claim.fault = ""
            if not fault:
                self.count("reused")
                return lease
            self._exchange(claim, lease, fault)
        return self._dial(claim, now + seconds)

    def _served_at_once(self, claim: _Claim[C]) -> bool:
        limit = self.config.max_waiting
        with self._lock:
            self._stats["requests"] += 1
            self._waiting.append(claim)
            self._serve()
            if claim in self._busy:
                return True
            if claim.patient or not limit or len(self._waiting) <= limit:
                self._stats["waits"] += 1
                return False
            self._waiting.pop()
            self._stats["timeouts"] += 1
        raise PoolTimeout(
            f"{limit} senders wait for a connection to {self.name} already (pool "
            "max_waiting): nothing was sent; send less at once or raise max_size"
        )

    def _wait(self, claim: _Claim[C], until: float) -> None:
        began = self._clock()
        seconds = max(0.0, until - began)
        claim.decided.wait(min(seconds, threading.TIMEOUT_MAX))
        with self._lock:
            self._stats["wait_seconds"] += self._clock() - began
            if claim in self._busy:
                return
            if claim not in self._waiting:
                raise PoolClosed(
                    f"the pool of {self.name} was closed while this message waited for "
                    "a connection: nothing was sent; send it again"
                )
            # At once, so that nothing is handed to it any more.
            self._waiting.remove(claim)
            self._stats["timeouts"] += 1
        raise PoolTimeout(
            f"no connection to {self.name} became free in {seconds:.3g} s, all "
            f"{self._max_size} are in use (pool timeout, max_size): nothing was sent"
        )

    def _find_fault(self, lease: Lease[C], until: float) -> str:
        """Return why a parked connection cannot be lent, or an empty string."""
        now = self._clock()
        if fault := lease.limit_reached(now):
            return fault
        connection, ping_after = lease.connection, self.config.ping_after
        alive = connection.alive()
        if alive and ping_after is not None and now - lease.idle_since >= ping_after:
            self.count("pings")
            alive = connection.ping(min(PING_TIMEOUT, until - now))
        if alive:
            return ""
        connection.close()
        return "stale"

    def _exchange(self, claim: _Claim[C], lease: Lease[C], fault: str) -> None:
        """Close a connection and put the next one, or the leave to dial, in its place."""
        lease.dismiss()
        with self._lock:
            self._closed_by[fault] += 1
            claim.lease = self._idle.pop() if self._idle and not claim.fresh else None

    def _dial(self, claim: _Claim[C], until: float) -> Lease[C]:
        try:
            connection = self._connect(until)
        except BaseException:
            self.count("open_errors")
            raise
        lease = Lease.begin(connection, self.config, self._clock())
        with self._lock:
            self._stats["opened"] += 1
            claim.lease = lease
        return lease

    @contextmanager
    def _ending(self, claims: list[_Claim[C]]) -> Iterator[None]:
        """End all these claims with a block, whatever happens in it."""
        try:
            yield
        finally:
            try:
                for claim in claims:
                    self._end(claim)
            except BaseException:
                # An interrupt may strike between any two instructions: finish first.
                for claim in claims:
                    self._end(claim)
                raise

    def _end(self, claim: _Claim[C]) -> None:
        """Park, hand over or close what a claim holds; nothing if that was done before."""
        if self._pid != os.getpid():
            self.abandon()  # forked by something that does not run Python's hooks
        with self._lock:
            lease = claim.lease if claim in self._busy else None
            fault = self._fault(claim, lease) if lease else ""
            if lease and fault:
                self._closed_by[fault] += 1
                claim.lease = None
            else:
                self._stats["resets"] += bool(lease and lease.connection.dirty)
                self._free(claim)
        if lease and fault:
            # In its slot, and heard by the server, which is never to see more than
            # `max_size`. What was idle may be dead: nobody waits for an answer from it.
            lease.dismiss(patience=0.0 if claim.fault else GOODBYE_TIMEOUT)
            with self._lock:
                self._free(claim)
