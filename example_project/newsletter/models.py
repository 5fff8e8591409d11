from __future__ import annotations

from django.db import models


class Subscriber(models.Model):
    """Somebody who gets the newsletter."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.email


class Letter(models.Model):
    """An issue that was queued for a subscriber: there is none before, and never two."""

    issue = models.SlugField()
    subscriber = models.ForeignKey(Subscriber, models.CASCADE, related_name="letters")

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["issue", "subscriber"], name="one_letter"),
        )

    def __str__(self) -> str:
        return f"{self.issue} for {self.subscriber_id}"
