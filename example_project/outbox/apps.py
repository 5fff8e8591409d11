from __future__ import annotations

from django.apps import AppConfig


class OutboxConfig(AppConfig):
    """Keeps what was sent and what became of it."""

    name = "outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the receivers."""
        from . import receivers  # noqa: F401
