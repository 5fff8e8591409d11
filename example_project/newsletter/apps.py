from __future__ import annotations

from django.apps import AppConfig


class NewsletterConfig(AppConfig):
    """A newsletter that is sent through a queue."""

    name = "newsletter"
    default_auto_field = "django.db.models.BigAutoField"
