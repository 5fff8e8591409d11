from __future__ import annotations

from django.db import models


class Subscriber(models.Model):
    """A recipient of the newsletter."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.email


class Letter(models.Model):
    """An issue that is queued for a subscriber; the constraint prevents a second one."""

    issue = models.SlugField()
    subscriber = models.ForeignKey(Subscriber, models.CASCADE, related_name="letters")

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["issue", "subscriber"], name="one_letter"),
        )

    def __str__(self) -> str:
        return f"{self.issue} for {self.subscriber_id}"
