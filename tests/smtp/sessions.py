"""What the tests of a session share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from django_lettermint.results import Outcome
from tests.faultserver import (
    FEATURES,
    FaultServer,
    On,
    gate,
)
from tests.sending import (
    session,
    transaction,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_lettermint.smtp import MailTransaction, Reply
    from django_lettermint.smtp.stream import SMTPStream

BOB = "bob@example.org"
BIG = b"Subject: Big\r\n\r\n" + (b"x" * 78 + b"\r\n") * 100_000
CHUNKING = (*FEATURES, "CHUNKING")
SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def without(*names: str) -> tuple[str, ...]:
    return tuple(each for each in FEATURES if each.partition(" ")[0] not in names)


def send_one(
    server: FaultServer, one: MailTransaction, **options: Any
) -> MailTransaction:
    """Send over a session of its own and return the transaction."""
    with session(server, **options) as held:
        held.send(one)
        assert held.reusable is not held.closed
    return one


def outcomes(transactions: list[MailTransaction]) -> list[Outcome]:
    return [each.outcome for each in transactions]


class ObservedStream:
    """A stream that calls functions before it writes, and before it waits for a reply."""

    def __init__(
        self,
        stream: SMTPStream,
        *,
        before_write: Callable[[bytes], None] = lambda _: None,
        before_read: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._before_write = before_write
        self._before_read = before_read

    def write(self, data: bytes, until: float, **options: Any) -> None:
        self._before_write(data)
        self._stream.write(data, until, **options)

    def read_reply(self, until: float) -> Reply:
        self._before_read()
        return self._stream.read_reply(until)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def received_at(
    server: FaultServer, phase: Any, **options: Any
) -> tuple[bytes, MailTransaction]:
    """Return what the server has received when it comes to a phase, and the transaction."""
    release, reached = threading.Event(), threading.Event()
    server.script.append(On(phase, times=1, do=gate(release, reached)))
    one = transaction(BOB, "cid@example.org")
    with session(server, **options) as held:
        sender = threading.Thread(target=held.send, args=(one,))
        sender.start()
        assert reached.wait(5)
        received = server.received[1].partition(b"MAIL")[2]
        release.set()
        sender.join(5)
    return received, one
