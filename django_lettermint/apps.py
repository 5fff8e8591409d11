"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

from . import checks


class LettermintConfig(AppConfig):
    """The app that registers the system checks."""

    name = "django_lettermint"
    label = "django_lettermint"
    verbose_name = "Lettermint"

    def ready(self) -> None:
        """Register under "mail", which Django < 6.1 has no constant for."""
        register(checks.check_backends, "mail")
        register(checks.check_queues, "mail")
        register(checks.check_webhooks, "mail")
        register(checks.check_names, "mail")
        register(checks.check_other_settings, "mail")
        register(checks.check_distributions, "mail")
        register(checks.check_tenants, Tags.database)
