"""Store signals. Copy this file and models.py, and import it in AppConfig.ready()."""

from __future__ import annotations

from typing import Any

from anymail.signals import AnymailTrackingEvent, tracking
from django.core.mail import EmailMessage
from django.dispatch import receiver

from django_lettermint.results import SendResult
from django_lettermint.signals import message_failed, message_sent

from .models import Event, Mail


@receiver(message_sent)
def record_sent(message: EmailMessage, result: SendResult, **kwargs: Any) -> None:
    """Store a mail that the relay accepted."""
    record(message, result)


@receiver(message_failed)
def record_failed(
    message: EmailMessage, result: SendResult, error: Exception, **kwargs: Any
) -> None:
    """Store a mail that was not sent, or whose outcome is unknown."""
    record(message, result, str(error))


@receiver(tracking)
def record_event(event: AnymailTrackingEvent, **kwargs: Any) -> None:
    """Store an event; the same one comes again after an error."""
    Event.objects.update_or_create(
        event_id=event.event_id,
        defaults={
            # The id that record() stored, brought back by Lettermint.
            "message_id": event.message_id or "",
            "event_type": event.event_type,
            "timestamp": event.timestamp,
            "recipient": event.recipient or "",
            "detail": event.mta_response or event.description or "",
        },
    )


def record(message: EmailMessage, result: SendResult, error: str = "") -> None:
    """Store a mail and its outcome."""
    metadata = getattr(message, "metadata", None) or {}
    Mail.objects.create(
        message_id=result.message_id or "",
        subject=str(message.subject),
        from_email=message.from_email,
        to=", ".join(message.recipients()),
        route=getattr(message, "route", None) or "",
        tag=getattr(message, "tag", None) or "",
        metadata={key: str(value) for key, value in metadata.items()},
        idempotency_key=result.idempotency_key or "",
        outcome=result.outcome.value,
        phase=result.phase.value,
        error=error,
        reply=f"{result.code or ''} {result.text}".strip(),
        recipients={
            address: {
                "status": answer.status,
                "reply": f"{answer.code or ''} {answer.text}".strip(),
            }
            for address, answer in result.recipients.items()
        },
        attempts=result.attempts,
        elapsed=result.elapsed,
        connection_reused=result.connection_reused,
    )
