"""Messages, refusals and counters of the relay."""

from __future__ import annotations

import email.parser
import email.policy
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import cast


class _Unparsed(str):
    """The text of a header field that Python's parser fails on."""

    __slots__ = ()
    #: What EmailMessage looks for in a parsed field.
    content_disposition = None


class _TolerantPolicy(email.policy.EmailPolicy):
    def header_fetch_parse(self, name: str, value: str) -> str:
        try:
            parsed: str = super().header_fetch_parse(name, value)
        except Exception:  # noqa: BLE001 - differs by field and version of Python
            return _Unparsed("".join(value.splitlines()))
        return parsed


_PARSER = email.parser.BytesParser(policy=_TolerantPolicy(refold_source="none"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What the relay received, and over which connection."""

    #: The relay's own id, named in its reply and in webhooks; not the RFC 5322 Message-ID.
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    mail_from: str
    #: The accepted recipients, in the order of their RCPT commands.
    recipients: tuple[str, ...]
    #: Octets as sent, without dot-stuffing and without the final dot.
    content: bytes = field(repr=False)
    #: Number of the connection, counted from 1 over the life of the relay.
    connection: int
    #: "tls", "starttls" or "plaintext".
    security: str
    #: Version and cipher, as in "TLSv1.3 TLS_AES_256_GCM_SHA384"; empty in clear.
    tls: str
    #: Seconds since the epoch.
    received_at: float = field(default_factory=time.time)

    @property
    def mime(self) -> EmailMessage:
        """The whole message, parsed anew at each call.

        A field that cannot be parsed is its text.
        """
        try:
            return cast("EmailMessage", _PARSER.parsebytes(self.content))
        except RecursionError:
            # Parts within parts within parts.
            return self.headers

    @property
    def headers(self) -> EmailMessage:
        """The header fields alone, parsed anew at each call.

        A field that cannot be parsed is its text.
        """
        message = _PARSER.parsebytes(self.content, headersonly=True)
        return cast("EmailMessage", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedMessage(_Record):
    """A message as it was received, and what the relay read from it."""

    route: str | None
    tag: str | None
    metadata: Mapping[str, str]
    idempotency_key: str | None
    #: Whether MAIL asked for SMTPUTF8.
    smtputf8: bool
    #: Whether MAIL said BODY=8BITMIME.
    body_8bit: bool
    #: Whether the content came by BDAT.
    chunked: bool
    #: The project token of the login.
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(_Record):
    """A login, sender, recipient or message that the relay refused, and why.

    Sender and recipients are those known by then. `content` is empty but for "DATA".
    """

    #: "AUTH", "MAIL", "RCPT" or, for a complete message, "DATA" (by BDAT as well).
    command: str
    #: The sender or recipient that was refused; empty for the other commands.
    address: str
    #: The reply: its code, and its text with the rule that was broken.
    code: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Logins:
    """AUTH commands seen under TLS, and how many of them were answered 235."""

    attempts: int = 0
    successes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters at one moment; all but `open` and `in_progress` only grow."""

    #: TCP connections accepted.
    connections: int
    open: int
    #: The most that were open at once.
    peak: int
    #: Times a client wrote after the relay had answered all it had: the round trips of
    #: SMTP, without those of TCP and TLS. A client that streams without waiting for
    #: replies may be counted once too often here and there.
    round_trips: int
    #: How often each command came, by its verb in upper case.
    commands: Mapping[str, int]
    #: Recipients accepted and refused.
    recipients: int
    refused_recipients: int
    #: Messages delivered, and their octets.
    messages: int
    octets: int
    #: Messages answered with the reply of an earlier one with the same Idempotency-Key.
    replays: int
    #: Messages that are complete but not answered yet.
    in_progress: int
