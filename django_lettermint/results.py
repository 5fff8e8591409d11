"""Results of sending a message."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Outcome(enum.Enum):
    """The three ways in which a message can end."""

    #: The relay confirmed the message for at least one recipient.
    SENT = "sent"
    #: The relay certainly has not taken the message: sending again cannot duplicate it.
    NOT_SENT = "not_sent"
    #: The end of the message may have arrived, but no complete reply came back.
    UNKNOWN = "unknown"


class Phase(enum.StrEnum):
    """How far a message came: on a failure, the step that failed."""

    CANCELLED = "cancelled"  #: a pre_send receiver raised AnymailCancelSend
    NO_RECIPIENTS = "no_recipients"
    MESSAGE = "message"  #: the message itself: extras, addresses, rendering, size
    POOL = "pool"  #: waiting for a connection
    CONNECT = "connect"  #: DNS, TCP, greeting, EHLO
    TLS = "tls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"  #: the terminator is not written yet
    COMMIT = "commit"  #: the terminator may be on the wire (RFC 5321 section 4.1.1.4)
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientResult:
    """The relay's answer for one recipient.

    `status` is one of Anymail's: queued, rejected, invalid, failed, unknown.
    """

    status: str
    code: int | None = None
    enhanced_code: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """The result of one message: plain, picklable data without secrets."""

    outcome: Outcome
    #: Our id for the message; webhooks bring it back as `event.message_id`.
    message_id: str | None = None
    idempotency_key: str | None = None
    recipients: Mapping[str, RecipientResult] = field(default_factory=dict)
    #: The reply that decided the outcome; the text is sanitised, and limited in length.
    code: int | None = None
    text: str = ""
    phase: Phase = Phase.MESSAGE
    #: Tries, including connections that could not be made.
    attempts: int = 0
    #: Seconds from the first attempt to the last reply.
    elapsed: float = 0.0
    connection_reused: bool = False
