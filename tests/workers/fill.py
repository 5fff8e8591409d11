"""Fill the queue of the settings: `frozen` queues one mail, a number that many."""

from __future__ import annotations

import os
import sys

import django
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import transaction


def main(what: str) -> None:
    """Make the tables and queue the mails."""
    django.setup()
    if os.environ["QUEUE_ENGINE"].startswith("celery"):
        from tests.workers import celery_app  # noqa: F401 - shared tasks find it

    call_command("migrate", verbosity=0)
    with transaction.atomic():
        if what == "frozen":
            queue_frozen()
        else:
            queue_many(int(what))


def queue_many(count: int) -> None:
    """Queue mails to 0@example.org, 1@example.org, and so on."""
    for number in range(count):
        message = EmailMessage(
            f"Number {number}",
            "How are you?",
            "ann@example.org",
            [f"{number}@example.org"],
            headers={"X-LM-Tag": "newsletter"},
        )
        assert message.send() == 1


def queue_frozen() -> None:
    """Queue a mail whose extras `freeze()` has made headers of."""
    from django_lettermint.message import LettermintMessage, extras, freeze

    message = LettermintMessage(
        "Grüße", "Wie geht's?", "ann@example.org", ["bob@example.org"]
    )
    message.tag = "welcome"
    message.metadata = {"order": 7, "name": "Zoë"}
    message.attach_alternative("<p>Wie geht's?</p>", "text/html")
    with extras(route="news"):
        freeze(message).send()


if __name__ == "__main__":
    main(sys.argv[1])
