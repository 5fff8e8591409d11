"""One message through the backend: its result, status, log lines and signals."""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from anymail.message import AnymailRecipientStatus, AnymailStatus
from anymail.signals import post_send
from django.core.mail import EmailMessage

from .delivery import build_error, build_result
from .exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    EnqueueFailed,
    PoolClosed,
    PoolTimeout,
    RecipientsRefused,
    TLSFailed,
)
from .results import Outcome, Phase, SendResult
from .signals import message_failed, message_sent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anymail.backends.base import AnymailBaseBackend

    from .conf import Endpoint
    from .delivery import Submission

logger = logging.getLogger("django_lettermint")

_WITHOUT_ADDRESSES = (
    AuthenticationFailed,
    ConnectFailed,
    EnqueueFailed,
    PoolClosed,
    PoolTimeout,
    TLSFailed,
)

#: Nesting depth of `notify()`. A log handler may send mail (AdminEmailHandler) that
#: fails as well; this stops the recursion.
_depth: ContextVar[int] = ContextVar("django_lettermint_notify_depth", default=0)


@dataclass(slots=True, eq=False)
class OutgoingMessage:
    """One message on its way through the backend."""

    message: EmailMessage
    #: How it is delivered; empty if it never got that far.
    submissions: list[Submission] = field(default_factory=list)
    #: The caller's spelling of each address, by its form in SMTP.
    original_addresses: Mapping[str, str] = field(default_factory=dict)
    #: The idempotency key is the caller's.
    has_caller_key: bool = False
    #: The error it ends with, if any.
    error: Exception | None = None
    result: SendResult = field(
        default_factory=lambda: SendResult(outcome=Outcome.NOT_SENT)
    )
    #: Without status, log and signals: it is cancelled, queued, or has no recipients.
    suppress_signals: bool = False
    #: The name of its tenant, if it has one.
    tenant: str | None = None

    @property
    def prepared(self) -> bool:
        """Return whether it has submissions, or has ended before that."""
        return bool(self.submissions or self.error or self.suppress_signals)

    def interrupt(self) -> None:
        """End before anything was sent."""
        for submission in self.submissions:
            submission.fail(None)
        if self.prepared:
            return
        self.error = ConnectionLost("interrupted before the message was sent")
        given: object = self.message
        if isinstance(given, EmailMessage):
            self.message.anymail_status = AnymailStatus()  # type: ignore[attr-defined]
        else:
            self.suppress_signals = True

    @classmethod
    def not_to_send(cls, message: EmailMessage, phase: Phase) -> Self:
        """Return a message that is not sent for a reason that is no failure."""
        result = SendResult(outcome=Outcome.NOT_SENT, phase=phase)
        message.anymail_status.esp_response = result  # type: ignore[attr-defined]
        return cls(message, result=result, suppress_signals=True)


def notify(
    sender: type[AnymailBaseBackend],
    outgoing: OutgoingMessage,
    endpoint: Endpoint | None = None,
) -> None:
    """Set the status of a message that has ended, log its end, and send the signals.

    `endpoint` is the relay to log for a message without submissions. An exception in a
    receiver does not change the result.
    """
    if outgoing.submissions:
        outgoing.result = build_result(outgoing.submissions)
        if outgoing.result.outcome is not Outcome.SENT:
            outgoing.error = build_error(
                outgoing.submissions, has_caller_key=outgoing.has_caller_key
            )
    if outgoing.error:
        outgoing.error.result = outgoing.result  # type: ignore[attr-defined]
    if outgoing.suppress_signals:
        return
    depth = _depth.get()
    try:
        _depth.set(depth + 1)
        status = _status(outgoing)
        # A handler may mail ADMINS, and raise an error if that fails as well.
        with suppress(Exception):
            _log(outgoing, endpoint, logging.DEBUG if depth else logging.ERROR)
        if depth < 2:
            _send_signals(sender, outgoing, status)
    finally:
        _depth.set(depth)


def _status(outgoing: OutgoingMessage) -> AnymailStatus:
    status: AnymailStatus = outgoing.message.anymail_status  # type: ignore[attr-defined]
    status.esp_response = outgoing.result
    given, answers = outgoing.original_addresses, outgoing.result.recipients
    statuses = {
        given.get(address, address): AnymailRecipientStatus(
            submission.envelope.message_id, answers[address].status
        )
        for submission in outgoing.submissions
        for address in submission.recipients
    }
    if statuses:  # else it stays None: the message was not sent to the provider
        status.set_recipient_status(statuses)
    return status


def _log(
    outgoing: OutgoingMessage, endpoint: Endpoint | None, level_of_failures: int
) -> None:
    # Addresses, and replies that may quote them, are logged at DEBUG only.
    result, error = outgoing.result, outgoing.error
    if outgoing.submissions:
        endpoint = outgoing.submissions[0].config.endpoint
    if error:
        logger.log(
            level_of_failures,
            "Message %s: %s at %s%s%s (%s, code %s, attempts: %d)%s",
            result.message_id,
            result.outcome.value,
            result.phase,
            f" on {endpoint.host}:{endpoint.port}" if endpoint else "",
            f" for tenant {outgoing.tenant!r}" if outgoing.tenant else "",
            type(error).__name__,
            result.code,
            result.attempts,
            # Errors of a connection hold no addresses.
            f": {error}" if isinstance(error, _WITHOUT_ADDRESSES) else "",
        )
        logger.debug("Message %s: %s", result.message_id, error)
        return
    refused = [
        address
        for address, answer in result.recipients.items()
        if answer.status != "queued"
    ]
    if refused:
        logger.warning(
            "Message %s: sent, but %d of %d recipients were refused",
            result.message_id,
            len(refused),
            len(result.recipients),
        )
        logger.debug("Message %s: refused for %s", result.message_id, refused)
    else:
        logger.debug("Message %s: sent in %.3f s", result.message_id, result.elapsed)


def _send_signals(
    sender: type[AnymailBaseBackend], outgoing: OutgoingMessage, status: AnymailStatus
) -> None:
    # Robust, so that Django logs exceptions of receivers: the mail is out, or it is
    # not, and raising them would make the caller send it again.
    message = outgoing.message
    # Anymail's backends send post_send once the provider has answered for recipients.
    answered = outgoing.result.outcome is not Outcome.NOT_SENT
    if isinstance(outgoing.error, RecipientsRefused):
        answered = True
    elif isinstance(outgoing.error, EnqueueFailed):
        answered = False
    if answered:
        post_send.send_robust(
            sender,
            message=message,
            status=status,
            esp_name=sender.esp_name,
        )
    if outgoing.error:
        message_failed.send_robust(
            sender, message=message, result=outgoing.result, error=outgoing.error
        )
    else:
        message_sent.send_robust(sender, message=message, result=outgoing.result)
