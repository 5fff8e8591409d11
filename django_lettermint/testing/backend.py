"""An email backend for tests without sockets: Django's locmem, with Lettermint's rules."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core import mail
from django.core.exceptions import ImproperlyConfigured

from django_lettermint import backend
from django_lettermint.conf import looked_up
from django_lettermint.outgoing import OutgoingMessage, notify
from django_lettermint.results import Outcome, Phase, SendResult
from django_lettermint.smtp import Reply

from .parsed_headers import parse_headers
from .records import ReceivedMessage

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from django_lettermint.delivery import Submission

_TAKEN = Reply(250, ("2.0.0 Queued in mail.outbox",))


class EmailBackend(backend.EmailBackend):
    """Puts messages into `django.core.mail.outbox`, and refuses what would be refused.

    A message is prepared, and ends with status and signals, as with the real backend. Its
    copy in the outbox has `received`: what Lettermint would read, as a tuple with a
    ReceivedMessage for each transaction, most often one. No token is needed.
    """

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except ImproperlyConfigured:
            if "api_token" in kwargs:
                raise
            super().__init__(api_token="lm_test_token", **kwargs)  # noqa: S106 - no secret
        if not hasattr(mail, "outbox"):
            mail.outbox = []

    def open(self) -> bool | None:
        """Do nothing: there is no connection."""
        return None

    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """Take each message that Lettermint would; return how many."""
        results: list[SendResult] = []
        first_error: Exception | None = None
        call = looked_up.set({})
        try:
            for message in email_messages or ():
                outgoing = self.prepare(message)
                if outgoing.submissions:
                    self._take(outgoing)
                notify(type(self), outgoing)
                results.append(outgoing.result)
                first_error = first_error or outgoing.error
        finally:
            looked_up.reset(call)
        if first_error and not self.fail_silently:
            first_error.results = tuple(results)  # type: ignore[attr-defined]
            raise first_error
        return sum(result.outcome is Outcome.SENT for result in results)

    def _take(self, outgoing: OutgoingMessage) -> None:
        copied: Any = deepcopy(outgoing.message)
        # Shared, not copied: notify() fills it in.
        copied.anymail_status = outgoing.message.anymail_status  # type: ignore[attr-defined]
        # As Django's locmem does from 6.1 on.
        copied.sent_using = self.alias
        copied.received = tuple(map(_received, outgoing.submissions))
        mail.outbox.append(copied)


def _received(submission: Submission) -> ReceivedMessage:
    """End a submission as sent; return what arrived."""
    transaction = submission.begin()
    envelope = transaction.envelope
    transaction.phase, transaction.reply = Phase.DONE, _TAKEN
    transaction.replies = dict.fromkeys(envelope.recipients, _TAKEN)
    submission.record(transaction)
    return ReceivedMessage(
        mail_from=envelope.mail_from,
        recipients=envelope.recipients,
        content=envelope.data,
        **asdict(parse_headers(envelope.data)),
        smtputf8=envelope.smtputf8,
        body_8bit=not envelope.content.isascii(),
        chunked=False,
        connection=0,
        security=submission.config.endpoint.security,
        tls="",
        token="",
    )
