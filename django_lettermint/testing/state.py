"""State of the test relay: messages received, addresses to refuse, counters."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .idempotency import IdempotencyKeys
from .records import Logins, ReceivedMessage, Statistics

if TYPE_CHECKING:
    from .session import Reply


class RelayState:
    """Shared by all sessions of a relay, each of which has a thread of its own.

    `changed` guards what is not a single value, and wakes those who wait.
    """

    def __init__(self, *, reply_delay: float, keep_messages: bool) -> None:
        self.changed = threading.Condition()
        self.reply_delay = reply_delay
        self.keys = IdempotencyKeys()
        self.messages: list[ReceivedMessage] = []
        #: Called with each delivered message by its session's thread; must not block.
        self.observers: list[Callable[[ReceivedMessage], None]] = []
        self.refusals: dict[tuple[str, str], Reply] = {}
        #: Final replies to drop, with their connections.
        self.drops = 0
        self.logins = Logins()
        #: Cuts reply delays short.
        self.stopping = threading.Event()
        self._counts: Counter[str] = Counter()
        self._commands: Counter[str] = Counter()
        self._keep = keep_messages

    def statistics(self) -> Statistics:
        with self.changed:
            counts = self._counts
            return Statistics(
                connections=counts["connections"],
                open=counts["open"],
                peak=counts["peak"],
                round_trips=counts["round_trips"],
                commands=dict(self._commands),
                recipients=counts["recipients"],
                refused_recipients=counts["refused_recipients"],
                messages=counts["messages"],
                octets=counts["octets"],
                replays=counts["replays"],
                in_progress=counts["in_progress"],
            )

    def count(self, name: str) -> None:
        with self.changed:
            self._counts[name] += 1

    def count_command(self, verb: str) -> None:
        with self.changed:
            self._commands[verb] += 1

    def connected(self) -> None:
        with self.changed:
            self._counts["connections"] += 1
            self._counts["open"] += 1
            self._counts["peak"] = max(self._counts["peak"], self._counts["open"])
            self.changed.notify_all()

    def disconnected(self) -> None:
        with self.changed:
            self._counts["open"] -= 1
            self.changed.notify_all()

    def login_tried(self, *, success: bool) -> None:
        with self.changed:
            self.logins = Logins(
                attempts=self.logins.attempts + 1,
                successes=self.logins.successes + success,
            )

    def drops_reply(self) -> bool:
        """Return whether this final reply is to be dropped, and count it."""
        with self.changed:
            dropped = self.drops > 0
            self.drops -= dropped
            return dropped

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """Count a message that is complete but not answered."""
        self._change_progress(1)
        try:
            yield
        finally:
            self._change_progress(-1)

    def _change_progress(self, change: int) -> None:
        with self.changed:
            self._counts["in_progress"] += change
            self.changed.notify_all()

    def deliver(self, message: ReceivedMessage) -> None:
        with self.changed:
            if self._keep:
                self.messages.append(message)
            self._counts["messages"] += 1
            self._counts["octets"] += len(message.content)
            self.changed.notify_all()
        for observer in tuple(self.observers):
            observer(message)

    def clear(self) -> None:
        with self.changed:
            self.messages.clear()
