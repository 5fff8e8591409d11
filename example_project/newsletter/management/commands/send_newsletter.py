"""manage.py send_newsletter ISSUE: queue a personal mail for every subscriber.

If it is killed, even by `kill -9`, run it again and it continues: the tasks of a chunk and
its Letter rows are written in one transaction.
"""

from __future__ import annotations

from typing import Any

from django.core import mail
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils.text import slugify

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.message import LettermintMessage
from newsletter.models import Letter, Subscriber

BAR = 40


class Command(BaseCommand):
    """Queues an issue in chunks."""

    help = "Queue a personal mail for each subscriber without this issue."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("issue", type=slugify)
        parser.add_argument("--chunk", type=int, default=250, metavar="N")
        parser.add_argument(
            "--subscribers",
            type=int,
            default=0,
            metavar="N",
            help="make N subscribers first, at Lettermint's test address",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Queue chunks until every subscriber has the issue."""
        if options["chunk"] < 1:
            raise CommandError("--chunk must be 1 or more")
        make_subscribers(options["subscribers"])
        issue, total = options["issue"], Subscriber.objects.count()
        self.show(done := Letter.objects.filter(issue=issue).count(), total)
        while chunk := self.queue_chunk(issue, options["chunk"]):
            self.show(done := done + chunk, total)
        self.stderr.write("")

    def show(self, done: int, total: int) -> None:
        """Draw the progress bar."""
        full = BAR * done // max(total, 1)
        bar = "#" * full + "." * (BAR - full)
        self.stderr.write(f"\r[{bar}] {done}/{total}", ending="")
        self.stderr.flush()

    @transaction.atomic
    def queue_chunk(self, issue: str, size: int) -> int:
        """Queue the issue for some subscribers without it, and return their number."""
        waiting = Subscriber.objects.exclude(letters__issue=issue).order_by("pk")
        subscribers = list(waiting[:size])
        # If two commands run at once, the second one fails here and queues nothing.
        Letter.objects.bulk_create(
            Letter(issue=issue, subscriber=subscriber) for subscriber in subscribers
        )
        # Django 6.1 has mailers; your project needs only one of the two.
        mailers = getattr(mail, "mailers", None)
        backend = mailers.default if mailers else mail.get_connection()
        for subscriber in subscribers:
            try:
                backend.send_messages([letter_for(subscriber, issue)])
            except LettermintInvalidMessage as error:
                # Keep the Letter: another try would fail as well. All other errors stop
                # the command and roll this chunk back.
                self.stderr.write(f"\nsubscriber {subscriber.pk}: {error}")
        return len(subscribers)


def letter_for(subscriber: Subscriber, issue: str) -> LettermintMessage:
    """Return the mail for a subscriber."""
    return LettermintMessage(
        f"{subscriber.name}, our {issue} news",
        f"Dear {subscriber.name},\n\nhere is what is new.\n",
        to=[subscriber.email],
        tag=f"newsletter-{issue}",
        metadata={"subscriber": subscriber.pk},
        # If the queue is not in this database, the key prevents duplicates.
        idempotency_key=f"newsletter/{issue}/{subscriber.pk}",
    )


def make_subscribers(count: int) -> None:
    """Create the first `count` subscribers, unless they exist."""
    Subscriber.objects.bulk_create(
        (
            Subscriber(email=f"ok+{number}@testing.lettermint.co", name=f"Nº {number}")
            for number in range(1, count + 1)
        ),
        batch_size=1000,
        ignore_conflicts=True,
    )
