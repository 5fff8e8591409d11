"""What a fault server saw and decided, shared by its sessions."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.faults import Action, Moment, On, normal

Verdict = Literal["new", "replay", "busy", "conflict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that the server took."""

    mail_from: str
    recipients: tuple[str, ...]
    content: bytes  #: without dot-stuffing and terminator
    key: str | None  #: the Idempotency-Key header
    connection: int
    parameters: str  #: what stood behind MAIL's path


class Login(NamedTuple):
    mechanism: str
    user: str
    ok: bool  #: user and secret were right, whatever a script made the server answer


@dataclass(slots=True)
class _Claim:
    content: bytes
    busy: bool = True


class Ledger:
    """The record of all connections; every change wakes those who wait for one."""

    def __init__(self, script: Iterable[On], *, idempotency: bool) -> None:
        self.script = list(script)
        self.deliveries: list[Delivery] = []
        self.logins: list[Login] = []
        self.commands: list[tuple[int, bytes]] = []
        self.violations: list[str] = []
        self.messages = 0
        self.replays = 0
        self.changed = threading.Condition(threading.RLock())
        self.idempotency = idempotency
        self._claims: dict[str, _Claim] = {}
        self._used: Counter[On] = Counter()

    def action(
        self, moment: Moment, spent: Collection[On] = ()
    ) -> tuple[On | None, Action]:
        """Return the first rule for this moment, but none of those spent, and what it does."""
        with self.changed:
            for rule in self.script:
                left = rule.times is None or self._used[rule] < rule.times
                if left and rule not in spent and rule.fits(moment):
                    self._used[rule] += 1
                    return rule, rule.do
        return None, normal

    def note(self, change: Callable[[], object]) -> None:
        """Change the record and wake those who wait."""
        with self.changed:
            change()
            self.changed.notify_all()

    def begin_message(self) -> int:
        with self.changed:
            self.messages += 1
            self.changed.notify_all()
            return self.messages

    def claim(self, delivery: Delivery) -> Verdict:
        """Tell what the key of a message says about it; "new" claims the key until `settle`."""
        if not self.idempotency or delivery.key is None:
            return "new"
        with self.changed:
            known = self._claims.setdefault(
                delivery.key, claim := _Claim(delivery.content)
            )
            if known is claim:
                return "new"
            if known.content != delivery.content:
                return "conflict"
            if known.busy:
                return "busy"
            self.replays += 1
            return "replay"

    def settle(self, delivery: Delivery, *, taken: bool) -> None:
        """Free the key of a message that was refused; remember the key of one that was taken."""
        with self.changed:
            claim = self._claims.get(delivery.key or "")
            if claim is None:
                return
            claim.busy = False
            if not taken:
                del self._claims[delivery.key or ""]


def key_of(content: bytes) -> str | None:
    """Return the Idempotency-Key in the header section."""
    header = content.partition(b"\r\n\r\n")[0]
    found = re.search(
        rb"^Idempotency-Key:[ \t]*(.*?)[ \t]*\r?$", header, re.IGNORECASE | re.MULTILINE
    )
    return found[1].decode("latin-1") if found else None
