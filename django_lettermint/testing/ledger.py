"""The relay's memory and judgement: what was sent, what is refused, what is a repetition."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .reading import Reading, RefusedContent, read
from .records import Logins, ReceivedMessage, Statistics

if TYPE_CHECKING:
    from .policy import Policy


@dataclass(slots=True, kw_only=True)
class Incoming:
    """A complete message, not judged yet; the fields are those of ReceivedMessage."""

    mail_from: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    smtputf8: bool
    body_8bit: bool
    chunked: bool
    connection: int
    security: str
    token: str = field(repr=False)


@dataclass(slots=True)
class _Claim:
    """The first use of an Idempotency-Key; without a reply it is still being worked on."""

    digest: bytes
    reply: str | None = None


class Ledger:
    """Shared by all connections of a relay.

    The relay's event loop writes, other threads read: `changed` guards the messages and
    wakes those who wait; plain counters are written by the loop alone.
    """

    def __init__(self, policy: Policy, *, keep: bool) -> None:
        self.policy = policy
        self.think_time = 0.0
        #: Final replies that will not be sent: the connection is cut instead.
        self.replies_to_lose = 0
        self.changed = threading.Condition()
        self.messages: list[ReceivedMessage] = []
        #: Called on the loop with each delivered message; must not block.
        self.observers: list[Callable[[ReceivedMessage], None]] = []
        self.refusals: dict[tuple[str, str], str] = {}
        self.logins = Logins()
        self.counts: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self._keep = keep
        self._claims: dict[tuple[str, str], _Claim] = {}
        self._thinking: set[asyncio.Task[str]] = set()
        self._connections = itertools.count(1)

    def statistics(self) -> Statistics:
        counts = self.counts
        return Statistics(
            connections=counts["connections"],
            open=counts["open"],
            peak=counts["peak"],
            round_trips=counts["round_trips"],
            commands=dict(self.commands.copy()),
            recipients=counts["recipients"],
            refused_recipients=counts["refused_recipients"],
            messages=counts["messages"],
            octets=counts["octets"],
            replays=counts["replays"],
            in_progress=counts["in_progress"],
        )

    def clear(self) -> None:
        with self.changed:
            self.messages.clear()

    def connected(self) -> int:
        """Count a new connection and return its number."""
        with self.changed:
            self.counts["connections"] += 1
            self.counts["open"] += 1
            self.counts["peak"] = max(self.counts["peak"], self.counts["open"])
            self.changed.notify_all()
        return next(self._connections)

    def disconnected(self) -> None:
        with self.changed:
            self.counts["open"] -= 1
            self.changed.notify_all()

    def login(self, *, success: bool) -> None:
        attempts, successes = self.logins.attempts + 1, self.logins.successes + success
        self.logins = Logins(attempts=attempts, successes=successes)

    def refusal(self, verb: str, address: str) -> str | None:
        return self.refusals.get((verb, address.casefold()))

    def recipient(self, address: str, accepted: int) -> str | None:
        """Judge a recipient behind `accepted` others: None, or the reply that refuses it."""
        refusal = self.refusal("RCPT", address)
        if refusal is None and accepted >= self.policy.max_recipients:
            refusal = (
                f"452 4.5.3 At most {self.policy.max_recipients} recipients a message"
            )
        self.counts["recipients" if refusal is None else "refused_recipients"] += 1
        return refusal

    def loses_reply(self) -> bool:
        """Tell whether this final reply is to be lost, and count it."""
        lost = self.replies_to_lose > 0
        self.replies_to_lose -= lost
        return lost

    async def receive(self, mail: Incoming) -> str:
        """Judge a complete message and return the final reply."""
        try:
            reading = read(mail.content)
        except RefusedContent as refusal:
            return str(refusal)
        key = reading.idempotency_key
        claim = _Claim(b"" if key is None else hashlib.sha256(mail.content).digest())
        if key is not None:
            first = self._claims.setdefault((mail.token, key), claim)
            if first is not claim:
                return self._repeated(first, claim)
        if not self.think_time:
            return self._deliver(mail, reading, claim)
        # Complete messages are worked on to the end, even if their client goes away.
        task = asyncio.ensure_future(self._think(mail, reading, claim))
        self._thinking.add(task)
        task.add_done_callback(self._thinking.discard)
        return await asyncio.shield(task)

    def _repeated(self, first: _Claim, again: _Claim) -> str:
        if first.digest != again.digest:
            return "554 5.5.0 Idempotency-Key was used for another message"
        if first.reply is None:
            return (
                "451 4.5.0 The first message with this Idempotency-Key is in progress"
            )
        self.counts["replays"] += 1
        return first.reply

    async def _think(self, mail: Incoming, reading: Reading, claim: _Claim) -> str:
        self._working(1)
        try:
            await asyncio.sleep(self.think_time)
        except asyncio.CancelledError:
            # The relay stops: the message was never taken, and its key not used.
            self._claims.pop((mail.token, reading.idempotency_key or ""), None)
            raise
        finally:
            self._working(-1)
        return self._deliver(mail, reading, claim)

    def _working(self, change: int) -> None:
        with self.changed:
            self.counts["in_progress"] += change
            self.changed.notify_all()

    def _deliver(self, mail: Incoming, reading: Reading, claim: _Claim) -> str:
        message = ReceivedMessage(
            id=str(uuid.uuid4()),
            mail_from=mail.mail_from,
            recipients=mail.recipients,
            content=mail.content,
            route=reading.route,
            tag=reading.tag,
            metadata=reading.metadata,
            idempotency_key=reading.idempotency_key,
            smtputf8=mail.smtputf8,
            body_8bit=mail.body_8bit,
            chunked=mail.chunked,
            connection=mail.connection,
            security=mail.security,
            token=mail.token,
            received_at=time.time(),
        )
        claim.reply = f"250 2.0.0 Queued as {message.id}"
        with self.changed:
            if self._keep:
                self.messages.append(message)
            self.counts["messages"] += 1
            self.counts["octets"] += len(mail.content)
            self.changed.notify_all()
        for observer in tuple(self.observers):
            observer(message)
        return claim.reply
