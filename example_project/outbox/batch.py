"""Many mails at once, from several threads, for the pool page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

from django.core.mail import EmailMessage
from django.db import connections
from django.db.models import Count, Q

from django_lettermint.exceptions import LettermintError
from django_lettermint.message import LettermintMessage

from .models import Mail

SIZE = 100
#: More threads than the pool has connections, so that some wait.
THREADS = 16


def mail(batch: str, number: int) -> EmailMessage:
    """Return one of the mails."""
    return LettermintMessage(
        f"Number {number} of {SIZE}",
        "One of many.",
        to=[f"ok+{number}@testing.lettermint.co"],
        tag="batch",
        metadata={"batch": batch, "number": number},
    )


def send_in_background(batch: str, numbers: Iterable[int]) -> None:
    """Send in a thread, so that the page loads at once; a real site uses a queue."""
    Thread(target=_send_all, args=(batch, numbers), daemon=True).start()


def _send_all(batch: str, numbers: Iterable[int]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for number in numbers:
            pool.submit(_send_one, mail(batch, number))


def _send_one(message: EmailMessage) -> None:
    try:
        message.send()
    except LettermintError:
        pass  # the receiver of message_failed has stored it
    finally:
        connections.close_all()  # of the database; Django does it for requests only


def progress(query: Mapping[str, str]) -> dict[str, object] | None:
    """Return the progress of the batch that a query names."""
    name = query.get("batch")
    if not name:
        return None
    counts = Mail.objects.filter(metadata__batch=name).aggregate(
        done=Count("pk"), failed=Count("pk", filter=~Q(outcome="sent"))
    )
    return {"batch": name, "size": SIZE, **counts}
