"""Idempotency keys: a repeated message gets the first one's reply, and is not taken again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable
from dataclasses import dataclass

from .session import Reply

_CONFLICT = Reply(554, "5.5.0 Idempotency-Key was used for another message")
_IN_PROGRESS = Reply(
    451, "4.5.0 The first message with this Idempotency-Key is in progress"
)


@dataclass(slots=True)
class _Use:
    digest: bytes
    reply: Reply = _IN_PROGRESS


class IdempotencyKeys:
    """The keys that a server has seen, with a hash of the content of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[Hashable, _Use] = {}

    def begin(self, key: Hashable | None, content: bytes) -> Reply | None:
        """Return the reply to a repetition, or None for a first use or without a key.

        A first use must be ended, by `finish` or by `release`.
        """
        if key is None:
            return None
        use = _Use(hashlib.sha256(content).digest())
        with self._lock:
            first = self._uses.setdefault(key, use)
        if first is use:
            return None
        return first.reply if first.digest == use.digest else _CONFLICT

    def finish(self, key: Hashable | None, reply: Reply) -> None:
        """Answer repetitions with the reply to the message that was taken."""
        if key is not None:
            self._uses[key].reply = reply

    def release(self, key: Hashable | None) -> None:
        """Forget the key of a message that was not taken."""
        self._uses.pop(key, None)
