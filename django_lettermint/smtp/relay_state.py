"""What the connections of one pool know about their relay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dns import AddressInfo

#: Seconds for which nothing is pipelined behind the end of a message after a connection
#: was lost there: the loss may have had another cause.
CAUTION_SECONDS = 300.0


class RelayState:
    """Which addresses work, and whether the relay tolerates pipelined messages.

    All connections of a pool share it. Each change is a single assignment, so that no
    lock is needed; a lost update costs one needless attempt.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: The address of the latest session.
        self._good: object = None
        #: When an address failed last; the next session there removes it.
        self._failed: dict[object, float] = {}
        #: Until then nothing is pipelined behind the end of a message.
        self._cautious_until = 0.0

    @property
    def pipelines_past_data(self) -> bool:
        """Return whether commands may follow the end of a message unconfirmed."""
        return self._clock() >= self._cautious_until

    def refused_pipelining_past_data(self) -> None:
        """Note that the relay refuses what is pipelined behind the end of a message."""
        self._cautious_until = float("inf")

    def lost_while_pipelining(self) -> None:
        """Note that a connection broke with commands behind the end of a message."""
        self._cautious_until = max(
            self._cautious_until, self._clock() + CAUTION_SECONDS
        )

    def in_order(self, addresses: Iterable[AddressInfo]) -> list[AddressInfo]:
        """Return the address that worked last, then those that have not failed.

        The others follow, in the order in which they failed.
        """

        def rank(info: AddressInfo) -> tuple[bool, float]:
            address = info[4]
            return address != self._good, self._failed.get(address, 0.0)

        return sorted(addresses, key=rank)

    def note_success(self, info: AddressInfo) -> None:
        """Begin with this address next time."""
        self._good = info[4]
        self._failed.pop(info[4], None)

    def note_failure(self, info: AddressInfo) -> None:
        """Try other addresses before this one."""
        self._failed[info[4]] = self._clock()
        if self._good == info[4]:
            self._good = None

    def note_loss(self) -> None:
        """Note that the latest session was lost unused: try other addresses first."""
        self._failed[self._good] = self._clock()
        self._good = None
