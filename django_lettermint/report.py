"""The end of each message: its result, Anymail status, signals and log line."""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anymail.message import AnymailRecipientStatus, AnymailStatus
from anymail.signals import post_send

from .delivery import result as verdict
from .exceptions import RecipientsRefused
from .results import Outcome, Phase, SendResult
from .signals import message_failed, message_sent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anymail.backends.base import AnymailBaseBackend
    from django.core.mail import EmailMessage

    from .delivery.submission import Transaction

logger = logging.getLogger("django_lettermint")

#: How many reports of other messages this code runs inside of. Logging and signals may
#: send mail, ADMINS' for one, whose own failure is reported in turn, without end.
_depth: ContextVar[int] = ContextVar("django_lettermint_report_depth", default=0)


@dataclass(slots=True, eq=False)
class Job:
    """One message on its way through the backend."""

    message: EmailMessage
    #: What its delivery takes; empty if it never got that far.
    transactions: list[Transaction] = field(default_factory=list)
    #: The caller's spelling of each address, by its form on the wire.
    given: Mapping[str, str] = field(default_factory=dict)
    #: The idempotency key is the caller's.
    key_given: bool = False
    #: The error it ends with, if any; with a result but no transactions, it never began.
    error: Exception | None = None
    result: SendResult = field(
        default_factory=lambda: SendResult(outcome=Outcome.NOT_SENT)
    )
    #: It was cancelled or has nobody to go to: not worth a signal.
    silent: bool = False

    @property
    def octets(self) -> int:
        """Return what its rendered form keeps in memory."""
        return sum(each.envelope.size for each in self.transactions)

    def end_silently(self, phase: Phase) -> None:
        """End before the start, for a reason that is nobody's failure."""
        self.silent = True
        self.result = SendResult(outcome=Outcome.NOT_SENT, phase=phase)
        self.message.anymail_status.esp_response = self.result  # type: ignore[attr-defined]


def report(sender: type[AnymailBaseBackend], job: Job) -> None:
    """Tell everybody how a message ended; nothing that listeners do changes it."""
    if job.silent:
        return
    if job.transactions:
        job.result = verdict.result_of(job.transactions)
        job.error = verdict.error_of(job.transactions, key_given=job.key_given)
    if job.error:
        job.error.result = job.result  # type: ignore[attr-defined]
    depth = _depth.get()
    token = _depth.set(depth + 1)
    try:
        status = _status(job)
        # Handlers may mail ADMINS, and raise when that fails as well.
        with suppress(Exception):
            _log(job, logging.DEBUG if depth else logging.ERROR)
        if depth < 2:
            _send_signals(sender, job, status)
    finally:
        _depth.reset(token)


def _status(job: Job) -> AnymailStatus:
    status: AnymailStatus = job.message.anymail_status  # type: ignore[attr-defined]
    status.esp_response = job.result
    ids = {
        who: transaction.envelope.message_id
        for transaction in job.transactions
        for who in verdict.recipients_of(transaction)
    }
    if ids:  # else it was never sent to the provider, which Anymail says by None
        status.set_recipient_status(
            {
                job.given.get(who, who): AnymailRecipientStatus(ids[who], answer.status)
                for who, answer in job.result.recipients.items()
            }
        )
    return status


def _log(job: Job, level_of_failures: int) -> None:
    # Addresses and server texts, which may quote them, are for DEBUG only.
    result = job.result
    if job.error:
        logger.log(
            level_of_failures,
            "Message %s: %s at %s (%s, code %s, attempts: %d)",
            result.message_id,
            result.outcome.value,
            result.phase,
            type(job.error).__name__,
            result.code,
            result.attempts,
        )
        logger.debug("Message %s: %s", result.message_id, job.error)
        return
    refused = [
        who for who, answer in result.recipients.items() if answer.status != "queued"
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
    sender: type[AnymailBaseBackend], job: Job, status: AnymailStatus
) -> None:
    # Django logs what receivers raise: the mail is out, or it is not, and an exception
    # would make the caller send it again.
    message = job.message
    # As other Anymail backends do: when the provider has answered for the recipients.
    if job.result.outcome is not Outcome.NOT_SENT or isinstance(
        job.error, RecipientsRefused
    ):
        post_send.send_robust(
            sender,
            message=message,
            status=status,
            esp_name=sender.esp_name,
        )
    if job.error:
        message_failed.send_robust(
            sender, message=message, result=job.result, error=job.error
        )
    else:
        message_sent.send_robust(sender, message=message, result=job.result)
