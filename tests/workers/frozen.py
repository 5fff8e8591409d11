"""Queue one frozen mail by whatever the settings name."""

from __future__ import annotations

import os

import django
from django.core.management import call_command


def main() -> None:
    """Make the tables, and queue it."""
    django.setup()
    if os.environ["QUEUE_ENGINE"].startswith("celery"):
        from tests.workers import celery_app  # noqa: F401 - shared tasks find it

    from django_lettermint.message import LettermintMessage, extras, freeze

    call_command("migrate", verbosity=0)
    message = LettermintMessage(
        "Grüße", "Wie geht's?", "ann@example.org", ["bob@example.org"]
    )
    message.tag = "welcome"
    message.metadata = {"order": 7, "name": "Zoë"}
    message.attach_alternative("<p>Wie geht's?</p>", "text/html")
    with extras(route="news"):
        freeze(message).send()


if __name__ == "__main__":
    main()
