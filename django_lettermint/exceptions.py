"""The errors with which sending a message can end.

    AnymailError
    ├── LettermintInvalidMessage   (ValueError)              the message breaks a rule; not sent
    │   └── InvalidHeader          (BadHeaderError)          a line break in a header field
    └── AnymailAPIError
        └── LettermintError        (smtplib.SMTPException)
            ├── ConnectFailed          (SMTPConnectError, ConnectionError)
            │                                                    DNS, TCP, TLS, greeting or EHLO
            ├── TLSFailed              (SMTPConnectError)        certificate, handshake, STARTTLS
            ├── AuthenticationFailed   (SMTPAuthenticationError)
            ├── SenderRefused          (SMTPSenderRefused)
            ├── RecipientsRefused      (SMTPRecipientsRefused, AnymailRecipientsRefused)
            ├── MessageRefused         (SMTPDataError)
            ├── ConnectionLost         (SMTPServerDisconnected)  not sent
            ├── DeliveryUnknown        (SMTPServerDisconnected)  maybe sent
            ├── PoolTimeout            (TimeoutError)
            ├── PoolClosed             (SMTPServerDisconnected)
            └── EnqueueFailed                                    maybe in the queue

Each LettermintError is also the matching `smtplib` class (hence an OSError), so that
code for Django's SMTP backend keeps working. Configuration errors are not in this tree,
since `fail_silently` must not hide them.
"""

from __future__ import annotations

import smtplib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import django
from anymail.exceptions import AnymailAPIError, AnymailError, AnymailRecipientsRefused

if TYPE_CHECKING or django.VERSION >= (6, 0):  # where Django raises ValueError itself
    BadHeaderError = ValueError
else:
    from django.core.mail import BadHeaderError

if TYPE_CHECKING:
    from .envelope import Envelope
    from .results import Phase, SendResult


class _Picklable(AnymailError):
    """An error that can be pickled: text and results, no backend, socket or token."""

    backend: None = None
    email_message: None = None
    payload: None = None
    status_code: None = None
    response: None = None
    esp_name: str = "Lettermint"

    #: The result of the message; None for an error that concerns no message.
    result: SendResult | None = None
    #: One result per message, on the error that `send_messages()` raises.
    results: Sequence[SendResult] = ()

    def __init__(self, message: str) -> None:
        # AnymailError passes keywords on and smtplib's classes want positional codes:
        # neither constructor fits the other, so neither is called.
        self.args = (message,)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    cls: type[_Picklable], args: tuple[Any, ...], state: dict[str, Any]
) -> _Picklable:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class LettermintInvalidMessage(_Picklable, ValueError):
    """A message breaks a rule: names the field and the rule; nothing was sent."""

    retry_safe = True
    transient = False


class InvalidHeader(LettermintInvalidMessage, BadHeaderError):
    """A header field holds a line break; in Django < 6.0 also a BadHeaderError."""


def invalid_message(text: str, value: object = None) -> LettermintInvalidMessage:
    """Return the error for a message; `value` is what a header field was to hold."""
    line_break = isinstance(value, str) and ("\n" in value or "\r" in value)
    return InvalidHeader(text) if line_break else LettermintInvalidMessage(text)


class LettermintError(_Picklable, AnymailAPIError, smtplib.SMTPException):
    """Base class of all errors of the relay, the network, the pool and the queue."""

    #: Sending the same message again cannot duplicate it.
    retry_safe: bool = True
    #: Sending it again later may succeed.
    transient: bool = True
    #: The relay's reply (0 and b"" when there was none), named as in smtplib.
    smtp_code: int = 0
    smtp_error: Any = b""
    #: What happened, without the advice at the end of the text; "" if there is none.
    summary: str = ""
    #: A step took longer than its timeout.
    timed_out: bool = False

    def with_reply(self, code: int, text: str) -> Self:
        """Attach the relay's reply; a 4yz or 5yz code decides `transient`."""
        self.smtp_code, self.smtp_error = code, text.encode()
        if code >= 400:
            self.transient = code < 500
        return self


class ConnectFailed(LettermintError, smtplib.SMTPConnectError, ConnectionError):
    """No connection: DNS, TCP, TLS, the greeting or EHLO failed."""

    #: The phase of a result, if it is not CONNECT: TLS or AUTH.
    phase: Phase | None = None
    #: The step that failed: DNS, TCP, greeting, EHLO, STARTTLS, TLS or AUTH.
    step: str = ""

    @property
    def limits_connections(self) -> bool:
        """Return whether the relay may accept a connection once another has ended."""
        greeting = self.step == "greeting" and 400 <= self.smtp_code < 500
        return greeting or self.smtp_code == 421


class TLSFailed(LettermintError, smtplib.SMTPConnectError):
    """No verified TLS, so nothing was sent, not even the login.

    Transient, so that a queue keeps the mail until the certificate is renewed.
    """

    step: str = "TLS"
    #: Why OpenSSL did not verify the certificate (X509_V_ERR_…); 0: for another reason.
    verify_code: int = 0


class AuthenticationFailed(LettermintError, smtplib.SMTPAuthenticationError):
    """The relay did not accept the token."""

    transient = False
    step: str = "AUTH"


class SenderRefused(LettermintError, smtplib.SMTPSenderRefused):
    """The relay refused the sender."""

    sender: str = ""


class RecipientsRefused(
    LettermintError, AnymailRecipientsRefused, smtplib.SMTPRecipientsRefused
):
    """The relay refused every recipient."""

    #: As in smtplib: address -> (code, text).
    recipients: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012 - never changed


class MessageRefused(LettermintError, smtplib.SMTPDataError):
    """The relay refused the message at DATA or after its end."""


class ConnectionLost(LettermintError, smtplib.SMTPServerDisconnected):
    """The connection failed before the end of the message, which was not sent."""


class DeliveryUnknown(LettermintError, smtplib.SMTPServerDisconnected):
    """The end of the message was written, but no complete reply came back.

    `envelopes` are the frozen messages whose delivery is unknown; keep their
    `to_json()` to repeat them later.
    """

    retry_safe = False
    envelopes: Sequence[Envelope] = ()
    #: `EmailBackend.repeat(error.envelopes)` cannot duplicate.
    repeatable: bool = False

    @property
    def envelope(self) -> Envelope | None:
        """Return the first message whose delivery is unknown."""
        return self.envelopes[0] if self.envelopes else None

    @property
    def idempotency_key(self) -> str | None:
        """Return the idempotency key of `envelope`, if it has one."""
        return self.envelope.idempotency_key if self.envelope else None


class PoolTimeout(LettermintError, TimeoutError):
    """No connection became free in time."""


class PoolClosed(LettermintError, smtplib.SMTPServerDisconnected):
    """The pool was closed while the message waited for a connection."""


class EnqueueFailed(LettermintError):
    """The task backend raised an error; it may have queued the message."""

    retry_safe = False
