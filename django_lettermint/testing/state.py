"""State of the test relay: messages received, addresses to refuse, counters."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import fields

from .idempotency import IdempotencyKeys
from .records import Logins, ReceivedMessage, Refusal, Statistics

_COUNTERS = {each.name for each in fields(Statistics)} - {"commands"}


class RelayState:
    """Shared by the sessions of a relay, which run in threads.

    `changed` is the lock of everything but single values, and notifies waiting threads.
    """

    def __init__(self, *, reply_delay: float, keep_messages: bool) -> None:
        self.changed = threading.Condition()
        self.reply_delay = reply_delay
        self.keys = IdempotencyKeys()
        kept = None if keep_messages else 0
        self.messages: deque[ReceivedMessage] = deque(maxlen=kept)
        self.refusals: deque[Refusal] = deque(maxlen=kept)
        #: Called with each message and refusal by its session's thread; must not block.
        self.listeners: list[Callable[[ReceivedMessage | Refusal], None]] = []
        #: Code and text by verb and address.
        self.refused_addresses: dict[tuple[str, str], tuple[int, str]] = {}
        #: Final replies to drop, with their connections.
        self.drops = 0
        self.logins = Logins()
        #: Cuts reply delays short.
        self.stopping = threading.Event()
        self._counts: Counter[str] = Counter()
        self._commands: Counter[str] = Counter()

    def statistics(self) -> Statistics:
        with self.changed:
            counts = {name: self._counts[name] for name in _COUNTERS}
            return Statistics(commands=dict(self._commands), **counts)

    def add(self, **counts: int) -> None:
        """Add to counters of the statistics, and notify waiting threads."""
        with self.changed:
            self._counts.update(counts)
            self._counts["peak"] = max(self._counts["peak"], self._counts["open"])
            self.changed.notify_all()

    def count_command(self, verb: str) -> None:
        with self.changed:
            self._commands[verb] += 1

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

    def deliver(self, message: ReceivedMessage) -> None:
        with self.changed:
            self.messages.append(message)
            self.add(messages=1, octets=len(message.content))

    def refused(self, refusal: Refusal) -> None:
        with self.changed:
            self.refusals.append(refusal)
            self.changed.notify_all()

    def call_listeners(self, record: ReceivedMessage | Refusal) -> None:
        """Call the listeners; not under the lock, since they may take locks themselves."""
        for listener in tuple(self.listeners):
            listener(record)

    def clear(self) -> None:
        with self.changed:
            self.messages.clear()
            self.refusals.clear()
