"""What a worker does with a queued message, whatever the queue is."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from anymail.exceptions import AnymailConfigurationError
from django.core import mail

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.delivery import Delivery
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.outgoing import OutgoingMessage, notify
from django_lettermint.results import Outcome

from .queued import QueuedMessage, check_version, tenant_in
from .rebuild import message_from_bytes

logger = logging.getLogger("django_lettermint")

#: Seconds before the second try; doubled before each further one, up to the maximum.
PAUSE = 5.0
MAX_PAUSE = 60 * 60.0


def run(
    form: dict[str, Any],
    later: Callable[[dict[str, Any], float], object] | None,
    *,
    again: bool = False,
) -> dict[str, str | None]:
    """Send what `tasks.EmailBackend` has queued, and send one signal with the outcome.

    If another try may help, no signal is sent, and `later(form, seconds)` is called,
    which must run the new form after that time; with None, there is no other try.
    `again` says that a worker has begun this form before. Returns the message id and
    the outcome. Raises an error only if the outcome is still open, so any failed or
    abandoned run can be repeated.
    """
    check_version(form)
    sender = sending_backend(form.get("using"))
    tenant, unknown = tenant_in(form), None
    try:
        if tenant is not None:
            sender = sender.for_tenant(tenant)
    except LettermintInvalidMessage as error:
        if error.transient or not sender.has_tenants:
            raise
        unknown = error
    queued = QueuedMessage.from_json(form, sender.config)
    submissions = queued.submissions
    first = submissions[0].envelope
    if unknown:
        for each in submissions:
            if not each.done:
                each.fail(unknown)
    elif time.time() >= queued.give_up_at:
        queued.expire(started=again)
    else:
        with pool.open_pool(sender.config) as connections:
            Delivery(sender.config, connections).deliver([submissions])
        if _put_back(queued, later):
            return {"message_id": first.message_id, "outcome": "put back"}
    recipients = [address for each in submissions for address in each.recipients]
    message = message_from_bytes(first.content, recipients)
    # Set even if it is None: a receiver may send the message again, where an option or
    # a block may name another tenant.
    message.tenant = tenant
    outgoing = OutgoingMessage(
        message,
        submissions=submissions,
        has_caller_key=queued.has_caller_key,
        tenant=tenant,
    )
    notify(type(sender), outgoing, sender.config.endpoint)
    return {"message_id": first.message_id, "outcome": outgoing.result.outcome.value}


def sending_backend(using: str | None) -> EmailBackend:
    """Return the backend that sends: the mailer `using`, or that of the settings."""
    if using is None:
        return EmailBackend()
    mailers: Any = getattr(mail, "mailers", {})  # Django 6.1
    if using not in mailers:
        raise AnymailConfigurationError(
            f"queued mail is to be sent by the mailer {using!r}, which is not in MAILERS: "
            "workers need the same settings as the processes that queue"
        )
    backend: EmailBackend = mailers[using]
    return backend


def _put_back(
    queued: QueuedMessage, later: Callable[[dict[str, Any], float], object] | None
) -> bool:
    """Queue the message for another try if that may help; return whether it did."""
    if not queued.may_change:
        return False
    message_id = queued.submissions[0].envelope.message_id
    pause = min(MAX_PAUSE, PAUSE * 2**queued.tries) * random.uniform(0.5, 1.5)  # noqa: S311
    if time.time() + pause >= queued.give_up_at:
        return False
    if later is None:
        logger.warning(
            "Message %s: not tried again, as its queue has no run_after", message_id
        )
        return False
    try:
        later(queued.next_try().to_json(), pause)
    except Exception as error:  # the error of a queue may be of any class
        if all(each.outcome is Outcome.NOT_SENT for each in queued.submissions):
            raise
        # The task must not run again: the relay would answer its key as if it had taken
        # the message for all recipients.
        logger.error(
            "Message %s: not tried again, as its queue did not take it back (%s)",
            message_id,
            type(error).__name__,
        )
        return False
    logger.info("Message %s: not sent yet, next try in %.0f s", message_id, pause)
    return True
