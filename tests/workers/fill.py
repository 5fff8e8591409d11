"""Fill the queue of the settings with so many mails, each to a recipient of its own."""

from __future__ import annotations

import sys

import django
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.db import transaction


def main(count: int) -> None:
    """Make the tables and queue mails to 0@example.org, 1@example.org, and so on."""
    django.setup()
    call_command("migrate", verbosity=0)
    with transaction.atomic():
        for number in range(count):
            message = EmailMessage(
                f"Number {number}",
                "How are you?",
                "ann@example.org",
                [f"{number}@example.org"],
                headers={"X-LM-Tag": "newsletter"},
            )
            assert message.send() == 1


if __name__ == "__main__":
    main(int(sys.argv[1]))
