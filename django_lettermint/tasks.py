"""The queueing backend, and the task that sends what it has queued.

We keep no queue: each rendered, frozen message is one task of Django's task framework,
whose backends store and run it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from anymail.exceptions import AnymailConfigurationError, AnymailInvalidMailer
from anymail.message import AnymailRecipientStatus, AnymailStatus
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from .backend import EmailBackend as SendingBackend
from .conf import queue_config
from .exceptions import EnqueueFailed, LettermintInvalidMessage
from .queue_options import KEY_LIFE
from .queued import Queued
from .report import Job, report
from .worker import run, sending_backend

try:
    from django.tasks import task
except ImportError:  # Django < 6.0
    from django_tasks import task  # type: ignore[no-redef]

if TYPE_CHECKING:
    from django.core.mail import EmailMessage
    from django.tasks import Task, TaskContext

    from .transaction import Transaction


class EmailBackend(BaseEmailBackend):
    """Renders messages at once, and has workers send them."""

    def __init__(self, **kwargs: Any) -> None:
        self._config = queue_config(kwargs)
        super().__init__(**kwargs)
        # Before 6.1, Django's base class drops the alias.
        self.alias: str | None = kwargs.get("alias")
        self.fail_silently = self._config.fail_silently
        self._check_using()
        self._sender = sending_backend(self._config.using)
        self._task = self._configured_task()

    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """Queue each message, whatever becomes of the others; return how many it took.

        What cannot be queued ends here, by `message_failed`; all else ends in a worker.
        Raises the first error, unless the option `fail_silently` is set.
        """
        count = 0
        error: Exception | None = None
        for message in email_messages or ():
            job = self._prepare(message)
            count += self._queue(job)
            report(type(self._sender), job)
            error = error or job.error
        if error and not self.fail_silently:
            raise error
        return count

    def enqueue(self, form: dict[str, Any]) -> None:
        """Hand the JSON form of a message to the queue; override it for another queue."""
        self._task.enqueue(form)

    def _prepare(self, message: EmailMessage) -> Job:
        job = self._sender.prepare(message)
        size = max((each.envelope.size for each in job.transactions), default=0)
        if size > self._config.max_bytes:
            job.transactions = []
            job.error = LettermintInvalidMessage(
                f"the message has {size} octets, the queue takes "
                f"{self._config.max_bytes}: raise `max_bytes`, send it without the "
                "queue, or send large files as links"
            )
        return job

    def _queue(self, job: Job) -> bool:
        """Make a task of each envelope; return whether there is one."""
        transactions, job.transactions = job.transactions, []
        any_queued = False
        # An envelope's parts share its content.
        for _, group in groupby(transactions, key=lambda each: each.envelope.content):
            envelope = list(group)
            try:
                self._hand_over(envelope, key_given=job.key_given)
            except Exception as error:  # noqa: BLE001 - the task backend's, any kind
                job.error = EnqueueFailed(
                    f"the task backend {self._config.task_backend!r} did not take the "
                    f"message ({type(error).__name__}): it is not queued; see that its "
                    "database or broker works"
                )
                job.error.__cause__ = error
                return any_queued
            any_queued = True
            _set_queued(job, envelope)
        # The worker tells how it ends.
        job.silent = job.silent or any_queued
        return any_queued

    def _hand_over(self, transactions: list[Transaction], *, key_given: bool) -> None:
        # The last attempt, too, has to be over before the relay forgets the key.
        safe = KEY_LIFE - self._sender.config.deadline
        queued = Queued(
            transactions=transactions,
            using=self._config.using,
            give_up_at=time.time() + min(self._config.give_up_after, safe),
            key_given=key_given,
        )
        enqueue = partial(self.enqueue, queued.to_json())
        if self._config.on_commit:
            transaction.on_commit(enqueue)
        else:
            enqueue()

    def _check_using(self) -> None:
        using = self._config.using
        mailers: Any = getattr(mail, "mailers", ())  # Django 6.1
        if using is None:
            if self.alias is not None:
                raise self._wrong("needs the option `using`: the mailer that sends.")
        elif using == self.alias:
            raise self._wrong("`using` names this mailer itself: name one that sends.")
        elif using not in mailers:
            raise self._wrong(f"`using` is {using!r}, which is not in MAILERS.")
        else:
            path = mailers.settings[using].get("BACKEND", "")
            if not issubclass(import_string(path), SendingBackend):
                ours = f"{SendingBackend.__module__}.{SendingBackend.__qualname__}"
                raise self._wrong(f"`using` is {using!r}: its BACKEND must be {ours}.")

    def _configured_task(self) -> Task[..., Any]:
        config = self._config
        try:
            return send.using(
                backend=config.task_backend,
                queue_name=config.queue_name,
                priority=config.priority,
            )
        except Exception as error:
            raise self._wrong(
                "`task_backend`, `queue_name` and `priority` do not fit the setting "
                f"TASKS: {error}"
            ) from error

    def _wrong(self, problem: str) -> AnymailConfigurationError:
        if self.alias is None:
            return AnymailConfigurationError(f"The queueing backend: {problem}")
        return AnymailInvalidMailer(problem, alias=self.alias)


@task(takes_context=True)
def send(context: TaskContext[..., Any], form: dict[str, Any]) -> dict[str, str | None]:
    """Send what the backend has queued; put it back if another try may help."""
    own = context.task_result.task

    def later(form: dict[str, Any], seconds: float) -> None:
        moment = timezone.now() + timedelta(seconds=seconds)
        own.using(run_after=moment).enqueue(form)

    return run(form, later if own.get_backend().supports_defer else None)


def _set_queued(job: Job, transactions: list[Transaction]) -> None:
    status: AnymailStatus = job.message.anymail_status  # type: ignore[attr-defined]
    queued = AnymailRecipientStatus(transactions[0].envelope.message_id, "queued")
    status.set_recipient_status(
        {
            job.given.get(who, who): queued
            for each in transactions
            for who in each.envelope.recipients
        }
    )
