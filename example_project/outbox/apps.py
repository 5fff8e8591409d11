from __future__ import annotations

from django.apps import AppConfig


class OutboxConfig(AppConfig):
    """Stores sent mails and the events of their webhooks."""

    name = "outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the receivers."""
        from . import receivers  # noqa: F401
