"""Many mails at once, from several threads, to watch the pool at work."""

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
#: More than the pool has connections, so that some have to wait.
THREADS = 16


def mail(batch: str, number: int) -> EmailMessage:
    """Make one of the mails."""
    return LettermintMessage(
        f"Number {number} of {SIZE}",
        "One of many.",
        to=[f"ok+{number}@testing.lettermint.co"],
        tag="batch",
        metadata={"batch": batch, "number": number},
    )


def send_in_background(batch: str, numbers: Iterable[int]) -> None:
    """Send without keeping the visitor waiting; a queue would do that in a real site."""
    Thread(target=_send_all, args=(batch, numbers), daemon=True).start()


def _send_all(batch: str, numbers: Iterable[int]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for number in numbers:
            pool.submit(_send_one, mail(batch, number))


def _send_one(message: EmailMessage) -> None:
    try:
        message.send()
    except LettermintError:
        pass  # message_failed has told
    finally:
        connections.close_all()  # the database's: this thread is not a request's


def progress(query: Mapping[str, str]) -> dict[str, object] | None:
    """Return how far the batch named in a query is."""
    name = query.get("batch")
    if not name:
        return None
    counts = Mail.objects.filter(metadata__batch=name).aggregate(
        done=Count("pk"), failed=Count("pk", filter=~Q(outcome="sent"))
    )
    return {"batch": name, "size": SIZE, **counts}
