"""The worker's side of a queue, whichever queue it is."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from django.core import mail

from . import delivery
from .backend import EmailBackend
from .queued import Queued
from .rebuilt import rebuild
from .report import Job, report
from .verdict import recipients_of

logger = logging.getLogger("django_lettermint")

#: Seconds before the first further try; doubled for each one more, up to the maximum.
PAUSE = 5.0
MAX_PAUSE = 60 * 60.0


def run(
    form: dict[str, Any], later: Callable[[dict[str, Any], float], object] | None
) -> dict[str, str | None]:
    """Send what `tasks.EmailBackend` has queued, and tell how it ended by one signal.

    If another try may help, there is no signal, and `later(form, seconds)` is to run the
    new form after a pause; with None there is no other try. Raises only if it could not
    decide on the message, so that any failed or abandoned run may be repeated.
    """
    sender = sending_backend(form.get("using"))
    queued = Queued.from_json(form, sender.config)
    transactions = queued.transactions
    first = transactions[0].envelope
    if time.time() >= queued.give_up_at:
        queued.expire()
    else:
        delivery.deliver([transactions], sender.config)
        if _put_back(queued, later):
            return {"message_id": first.message_id, "outcome": "put back"}
    recipients = [who for each in transactions for who in recipients_of(each)]
    job = Job(
        rebuild(first.content, recipients),
        transactions=transactions,
        key_given=queued.key_given,
    )
    report(type(sender), job)
    return {"message_id": first.message_id, "outcome": job.result.outcome.value}


def sending_backend(using: str | None) -> EmailBackend:
    """Return the backend that sends: a mailer, or what the settings make."""
    if using is None:
        return EmailBackend()
    # The name exists from Django 6.1 on, and so do aliases.
    backend: EmailBackend = getattr(mail, "mailers")[using]  # noqa: B009
    return backend


def _put_back(
    queued: Queued, later: Callable[[dict[str, Any], float], object] | None
) -> bool:
    """Have what is undone tried once more, if that makes sense."""
    if not queued.may_change:
        return False
    message_id = queued.transactions[0].envelope.message_id
    pause = min(MAX_PAUSE, PAUSE * 2**queued.tries) * random.uniform(0.5, 1.5)  # noqa: S311
    if time.time() + pause >= queued.give_up_at:
        return False
    if later is None:
        logger.warning(
            "Message %s: not tried again, as its queue has no run_after", message_id
        )
        return False
    queued.reopen()
    later(queued.to_json(), pause)
    logger.info("Message %s: not sent yet, next try in %.0f s", message_id, pause)
    return True
