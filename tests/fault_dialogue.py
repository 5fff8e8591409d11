"""How every answer of a fault server comes about: the normal one, then the script's word on it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.fault_violations import LAST_OF_GROUP
from tests.fault_wire import Connection, Left
from tests.faults import Answer, Moment, On, Phase

if TYPE_CHECKING:
    from tests.fault_ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a server offers and believes."""

    tls: str | None
    features: tuple[str, ...]
    auth: tuple[str, ...]
    context: ssl.SSLContext
    user: str
    token: str


class Dialogue(Connection):
    """A connection with its place in the record and in the script; `converse` holds the protocol."""

    def __init__(
        self, sock: socket.socket, number: int, setup: Setup, ledger: Ledger
    ) -> None:
        super().__init__(sock, number)
        self.setup = setup
        self.ledger = ledger
        self.announced: set[str] = set()
        self.message = 0  #: number of the last MAIL command over the server
        self.messages = 0  #: MAIL commands on this connection
        self.early = 0  #: octets of commands that came before the reply to a message
        self.behind_end = False  #: this command is one of those
        self.settle: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Serve this connection until it ends, however it ends."""
        with contextlib.suppress(Left, OSError):
            self.converse()
        self.settle()

    def converse(self) -> None:
        raise NotImplementedError

    def moment(self, phase: Phase, argument: bytes, received: int = 0) -> Moment:
        return Moment(
            phase=phase,
            connection=self.number,
            message=self.message,
            message_on_connection=self.messages,
            argument=argument.decode("utf-8", "replace"),
            received=received,
            behind_end=self.behind_end,
        )

    def decide(self, phase: Phase, argument: bytes, answer: Answer) -> Answer:
        return self.ledger.action(self.moment(phase, argument))[1](answer)

    def respond(self, phase: Phase, argument: bytes, answer: Answer) -> int:
        """Give this answer, or what the script has instead; return the code that counts."""
        answer = self.decide(phase, argument, answer)
        answer.play(self)
        return answer.code

    def write(self, data: bytes) -> None:
        # A message is in progress until its answer is on the way.
        self.settle()
        self.settle = lambda: None
        super().write(data)

    def look_behind(self, what: bytes) -> None:
        """Note input that should have waited for the reply to this."""
        if not self.more_input():
            return
        if "PIPELINING" not in self.announced:
            self.violation(
                f"input behind {what[:20]!r}, and PIPELINING was not offered"
            )
        elif what in LAST_OF_GROUP:
            self.violation(
                f"input behind {what[:20]!r}, which must be the last of a group"
            )

    def violation(self, what: str) -> None:
        self.ledger.note(
            lambda: self.ledger.violations.append(f"connection {self.number}: {what}")
        )

    def read_body(self, size: int | None) -> tuple[bytes, bool]:
        """Read a chunk, or up to the terminator; tell whether a script answered meanwhile."""
        body, spent, answered = bytearray(), set[On](), False
        while True:
            while (acted := self.act_in_body(len(body), spent)) is not None:
                answered |= acted
            end = _end_of(body, size)
            if end is not None:
                self.buffer[:0] = body[end:]
                return bytes(body[:end]), answered
            stops = [rule.after_bytes - len(body) for rule in self.ledger.script]
            stops += [65536] if size is None else [size - len(body)]
            body += self.take(min(stop for stop in stops if stop > 0))

    def act_in_body(self, received: int, spent: set[On]) -> bool | None:
        rule, action = self.ledger.action(self.moment("body", b"", received), spent)
        if rule is None:
            return None
        spent.add(rule)
        answer = action(Answer(0, lambda _: None))
        answer.play(self)
        return answer.code != 0


def _end_of(body: bytearray, size: int | None) -> int | None:
    """Return where the content ends, its terminator included, None if it goes on."""
    if size is not None:
        return size if len(body) == size else None
    if body.startswith(b".\r\n"):
        return 3
    # Only the newest part can hold it: at most 65536 octets are read at once.
    at = body.find(b"\r\n.\r\n", max(0, len(body) - 65536 - 4))
    return at + 5 if at >= 0 else None
