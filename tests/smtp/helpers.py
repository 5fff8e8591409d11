"""What the tests of connections and sessions share."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import LettermintError
from django_lettermint.results import Outcome
from django_lettermint.smtp import RelayState, Session, connect
from tests.faultserver import FEATURES, TOKEN, FaultServer, On, gate
from tests.sending import cases, relay, session, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_lettermint.conf import RelayConfig
    from django_lettermint.smtp import MailTransaction, Reply
    from django_lettermint.smtp.stream import SMTPStream

BIG = b"Subject: Big\r\n\r\n" + (b"x" * 78 + b"\r\n") * 100_000
CHUNKING = (*FEATURES, "CHUNKING")
BY_DATA_AND_BDAT = pytest.mark.parametrize("chunking", cases(data=False, bdat=True))
SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def without(*names: str) -> tuple[str, ...]:
    """Return the features of a relay but for these."""
    return tuple(each for each in FEATURES if each.partition(" ")[0] not in names)


# -- connecting ------------------------------------------------------------------------


def connect_with(
    config: RelayConfig, *, seconds: float = 5.0, **others: Any
) -> Session:
    """Connect; the test closes the session."""
    state = others.pop("state", None) or RelayState()
    return connect(
        config.endpoint, state, until=soon(seconds), timeout=config.timeout, **others
    )


def failure_with(config: RelayConfig, **others: Any) -> Any:
    """Return the error that connecting ends with."""
    with pytest.raises(LettermintError) as raised:
        connect_with(config, **others)
    assert raised.value.retry_safe
    assert TOKEN not in str(raised.value)
    return raised.value


def failure(server: FaultServer, *, seconds: float = 5.0, **options: Any) -> Any:
    return failure_with(relay(server, **options), seconds=seconds)


@contextmanager
def in_clear_only(server: FaultServer) -> Iterator[None]:
    """Check that there was no login, and nothing else behind EHLO and STARTTLS."""
    yield
    assert server.wait_for(lambda: server.open_connections == 0)
    assert (server.logins, server.violations) == ([], [])
    assert {line.split()[0] for _, line in server.commands} <= {b"EHLO", b"STARTTLS"}


# -- sending ---------------------------------------------------------------------------


def send_one(
    server: FaultServer, one: MailTransaction, **options: Any
) -> MailTransaction:
    """Send over a new session and return the transaction."""
    with session(server, **options) as held:
        held.send(one)
        assert held.reusable is not held.closed
    return one


def window(kinds: str) -> list[MailTransaction]:
    """Return transactions to 1@x.test and so on, each repeatable (r) or not (-)."""
    return [
        transaction(f"{number}@x.test", repeatable=kind == "r")
        for number, kind in enumerate(kinds, 1)
    ]


def outcomes(transactions: list[MailTransaction]) -> list[Outcome]:
    return [each.outcome for each in transactions]


def code(one: MailTransaction) -> int | None:
    """Return the code of the reply that decided."""
    return one.reply.code if one.reply else None


def received_at(
    server: FaultServer, phase: Any, *several: MailTransaction, **options: Any
) -> bytes:
    """Send messages; return what the server had received when it came to a step."""
    release, reached = threading.Event(), threading.Event()
    server.script.append(On(phase, times=1, do=gate(release, reached)))
    with session(server, **options) as held:
        sender = threading.Thread(target=held.send_all, args=(several,))
        sender.start()
        assert reached.wait(5)
        received = server.received[1].partition(b"MAIL")[2]
        release.set()
        sender.join(5)
    assert outcomes(list(several)) == [SENT] * len(several)
    assert server.violations == []
    return b"MAIL" + received


class ObservedStream:
    """A stream that calls functions before it writes and before it reads."""

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
