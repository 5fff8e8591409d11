from __future__ import annotations

from django.db import models


class Mail(models.Model):
    """A mail and its outcome, as its signal reports it."""

    created_at = models.DateTimeField(auto_now_add=True)
    message_id = models.CharField(max_length=255, blank=True, db_index=True)
    subject = models.TextField(blank=True)
    from_email = models.TextField(blank=True)
    to = models.TextField(blank=True)
    route = models.CharField(max_length=255, blank=True)
    tag = models.CharField(max_length=255, blank=True)
    metadata = models.JSONField(default=dict)
    idempotency_key = models.CharField(max_length=255, blank=True)
    outcome = models.CharField(max_length=10)
    #: The last step, and the error with its remedy if there was one.
    phase = models.CharField(max_length=20)
    error = models.TextField(blank=True)
    #: The last reply of the relay.
    reply = models.TextField(blank=True)
    #: Address -> {"status": Anymail's status, "reply": the relay's reply}.
    recipients = models.JSONField(default=dict)
    attempts = models.PositiveIntegerField(default=0)
    elapsed = models.FloatField(default=0, help_text="seconds")
    connection_reused = models.BooleanField(default=False)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"{self.subject} ({self.outcome})"

    @property
    def milliseconds(self) -> int:
        """Return `elapsed` in milliseconds."""
        return round(self.elapsed * 1000)


class Event(models.Model):
    """An event of a webhook: delivered, bounced, opened, …"""

    # No foreign key: an event may arrive before the mail's own signal has run.
    message_id = models.CharField(max_length=255, db_index=True)
    event_id = models.CharField(max_length=255, unique=True)
    timestamp = models.DateTimeField()
    event_type = models.CharField(max_length=30)
    recipient = models.TextField(blank=True)
    detail = models.TextField(blank=True)

    class Meta:
        ordering = ("timestamp", "pk")

    def __str__(self) -> str:
        return f"{self.event_type} {self.recipient}"
