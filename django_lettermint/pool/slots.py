"""Who holds which connection and who waits for one: the decisions of a pool.

Whoever wants a connection makes a claim, which holds a slot while it is busy:

    claim        waiting ──► busy ──► ended        busy: with a connection, or leave to
                    └──────────────────►             dial one (again, if it is no good)

    connection   dialled ──► lent ◄──► idle        closed from any of these

Idle connections and busy claims are the slots, never more than `max_size` together.
Waiting claims are served first come first served; idle connections are lent newest
first, so that the surplus grows old and is closed.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Generic

from .connection import C, Lease


@dataclass(slots=True, eq=False)
class Claim(Generic[C]):
    """One caller's way to a connection and back."""

    #: Only a connection that is dialled now will do.
    fresh: bool = False
    #: It neither minds the pool's timeout nor how many wait.
    patient: bool = False
    #: The connection in its slot; a busy claim without one has leave to dial.
    lease: Lease[C] | None = None
    #: Why that connection is to be closed; empty if it may be kept.
    fault: str = ""
    #: Wakes the caller: there is a slot, or the pool was closed.
    decided: threading.Event = field(default_factory=threading.Event)


class Slots(Generic[C]):
    """The slots of one pool, used by whoever holds the pool's lock; nothing here waits.

    An interrupt may strike between any two instructions: the same call, made again,
    then completes what it had begun.
    """

    def __init__(self, max_size: float) -> None:
        self.max_size = max_size
        #: Parked connections, oldest first, in nobody's hands.
        self.idle: list[Lease[C]] = []
        #: Claims that hold a slot. With the idle connections, at most `max_size`.
        self.busy: set[Claim[C]] = set()
        #: Claims without a slot, in the order of their arrival; none while one is free.
        self.waiting: deque[Claim[C]] = deque()

    @property
    def size(self) -> int:
        """Return the number of slots in use."""
        return len(self.idle) + len(self.busy)

    def enter(self, claim: Claim[C]) -> bool:
        """Queue a claim; return whether it has got a slot at once."""
        self.waiting.append(claim)
        self._serve()
        return claim in self.busy

    def leave(self, claim: Claim[C]) -> None:
        """Take a slot, or a place in the queue, back; what is in the slot is parked."""
        if claim in self.waiting:  # both at once, if enter() was interrupted
            self.waiting.remove(claim)
        if claim in self.busy:
            self.busy.remove(claim)
            if claim.lease:
                self.idle.append(claim.lease)
        self._serve()

    def exchange(self, claim: Claim[C]) -> None:
        """Put an idle connection, or the leave to dial, where one was no good."""
        claim.lease = self.idle.pop() if self.idle and not claim.fresh else None

    def withdraw(self, claim: Claim[C]) -> None:
        """Let a claim have its idle connection, which keeps its slot until it is closed."""
        self.busy.add(claim)
        self.idle = [each for each in self.idle if each is not claim.lease]

    def clear(self) -> list[Lease[C]]:
        """Send everybody who waits away; return what was idle."""
        idle, self.idle = self.idle, []
        waiting, self.waiting = self.waiting, deque()
        for claim in waiting:
            claim.decided.set()
        return idle

    def _serve(self) -> None:
        """Give the free slots to those who wait longest."""
        while self.waiting:
            claim = self.waiting[0]
            if claim not in self.busy:
                if self.idle and not claim.fresh:
                    claim.lease = self.idle.pop()
                elif self.size >= self.max_size:
                    if not self.idle:
                        return
                    # Full, but only a new connection will do: the oldest makes room.
                    claim.lease = self.idle.pop(0)
                self.busy.add(claim)
            # Now, and again after an interrupt: nobody with a slot may sleep on.
            claim.decided.set()
            self.waiting.popleft()
