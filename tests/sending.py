"""Messages, backends and sessions for tests against a fault server, and what came of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import pytest
from anymail.message import AnymailMessage
from django.core.mail import EmailMessage

from django_lettermint.backend import EmailBackend
from django_lettermint.conf import RelayConfig, backend_config
from django_lettermint.envelope import Envelope
from django_lettermint.mime import Part
from django_lettermint.results import SendResult
from django_lettermint.signals import message_failed, message_sent
from django_lettermint.smtp import MailTransaction, RelayState, connect
from tests.faults import Action, Answer

if TYPE_CHECKING:
    from django_lettermint.smtp import Session
    from tests.faultserver import FaultServer, FaultStream

#: Seconds that are long on loopback, and short in a test that waits for them to pass.
SHORT = 0.5


def cases(**values: Any) -> list[Any]:
    """Return parameters whose names are their test ids."""
    return [pytest.param(value, id=name) for name, value in values.items()]


@contextmanager
def interruptible(
    kind: type[BaseException] = KeyboardInterrupt,
) -> Iterator[Callable[[], None]]:
    """Give a function, for other threads, that raises an interrupt in the main one."""
    main = threading.main_thread().ident or 0

    def strike() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)

    def interrupt(number: int, frame: FrameType | None) -> None:
        # coverage.py holds a lock in its own code, which would never be released.
        if frame and f"{os.sep}coverage{os.sep}" in frame.f_code.co_filename:
            threading.Timer(0.001, strike).start()
            return
        raise kind

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield strike
    finally:
        signal.signal(signal.SIGUSR1, previous)


def strike_and_wait(strike: Callable[[], None]) -> Action:
    """Interrupt the client, and say nothing more."""

    def play(wire: FaultStream) -> None:
        strike()
        wire.pause()

    return lambda _: Answer(0, play)


def mail(*to: str, subject: str = "Hello", **others: Any) -> EmailMessage:
    """Return a small message, by default to one recipient."""
    return EmailMessage(
        subject, "How are you?", "ann@example.org", to or ("bob@example.org",), **others
    )


def message(*to: str, **keywords: Any) -> Any:
    """Return a small message of Anymail's class, by default to one recipient."""
    return AnymailMessage(
        "Hi", "Hello", "shop@example.com", list(to) or ["ann@example.com"], **keywords
    )


def mails(count: int) -> list[EmailMessage]:
    """Return messages to 1@example.org, 2@example.org, and so on."""
    return [mail(f"{number}@example.org") for number in range(1, count + 1)]


def backend(server: FaultServer, **options: Any) -> EmailBackend:
    """Return a backend that reaches this server."""
    return EmailBackend(**server.options(**options))


def relay(server: FaultServer, **options: Any) -> RelayConfig:
    """Return the configuration that reaches this server."""
    return backend_config(server.options(**options)).relay


@dataclass
class HeldSession:
    """A session and the options that its messages are sent with."""

    session: Session
    config: RelayConfig

    def send(
        self, one: MailTransaction, following: Sequence[MailTransaction] = ()
    ) -> None:
        self.session.send(one, following, config=self.config)

    def send_all(self, transactions: Sequence[MailTransaction]) -> None:
        """Send messages as a list does: each knows of those that follow."""
        for number, each in enumerate(transactions, 1):
            if not self.session.closed:
                self.send(each, transactions[number:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


@contextmanager
def session(server: FaultServer, **options: Any) -> Iterator[HeldSession]:
    """Hold an authenticated session of one's own, without a pool."""
    config = relay(server, **options)
    held = connect(
        config.endpoint,
        RelayState(),
        # A short `timeout` is for the message, not for a busy machine's TLS handshake.
        until=time.monotonic() + 30,
        timeout=30,
    )
    try:
        yield HeldSession(held, config)
    finally:
        held.close()


def envelope(
    *to: str, content: bytes = b"Subject: Hello\r\n\r\nHow are you?\r\n", **others: Any
) -> Envelope:
    """Return an envelope of a small message."""
    header, body = Part.parse(content)
    return Envelope(
        mail_from="ann@example.org",
        recipients=to or ("bob@example.org",),
        header=header,
        body=body,
        message_id="id",
        **others,
    )


def transaction(*to: str, seconds: float = 30.0, **others: Any) -> MailTransaction:
    """Return a mail transaction of a small message; `repeatable` comes with a key."""
    repeatable = others.pop("repeatable", False)
    if repeatable:
        others["idempotency_key"] = "key of " + (to or ("bob@example.org",))[0]
    return MailTransaction(
        envelope=envelope(*to, **others),
        until=time.monotonic() + seconds,
        repeatable=repeatable,
    )


def spoken(server: FaultServer, connection: int | None = None) -> list[str]:
    """Return the verbs that the server heard since the login."""
    lines = [
        line.decode("utf-8", "replace").split(" ")[0].partition(":")[0]
        for number, line in list(server.commands)
        if connection in (None, number)
    ]
    return [verb for verb in lines if verb not in ("EHLO", "STARTTLS", "AUTH")]


def status(message: EmailMessage) -> Any:
    """Return the Anymail status that the backend left on a message."""
    return cast("AnymailMessage", message).anymail_status


def result(message: EmailMessage) -> SendResult:
    """Return what the backend left on a message."""
    found = status(message).esp_response
    assert isinstance(found, SendResult)
    return found


@contextmanager
def sending(sender: EmailBackend, *lists: Iterable[EmailMessage]) -> Iterator[None]:
    """Send lists, each in a thread of its own; all are sent at the end."""
    threads = [
        threading.Thread(target=sender.send_messages, args=(each,)) for each in lists
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(30)


@dataclass
class Heard:
    """The signals that fired, as (message, result) and (message, result, error)."""

    sent: list[tuple[EmailMessage, SendResult]] = field(default_factory=list)
    failed: list[tuple[EmailMessage, SendResult, Exception]] = field(
        default_factory=list
    )
    #: The messages of both, in order.
    ended: list[EmailMessage] = field(default_factory=list)

    def hear_sent(
        self, *, message: EmailMessage, result: SendResult, **_: object
    ) -> None:
        self.sent.append((message, result))
        self.ended.append(message)

    def hear_failed(
        self,
        *,
        message: EmailMessage,
        result: SendResult,
        error: Exception,
        **_: object,
    ) -> None:
        self.failed.append((message, result, error))
        self.ended.append(message)


@contextmanager
def listening() -> Iterator[Heard]:
    """Hear the signals that fire within the block."""
    heard = Heard()
    message_sent.connect(heard.hear_sent)
    message_failed.connect(heard.hear_failed)
    try:
        yield heard
    finally:
        message_sent.disconnect(heard.hear_sent)
        message_failed.disconnect(heard.hear_failed)
