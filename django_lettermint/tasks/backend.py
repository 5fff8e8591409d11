"""The queueing backend: it makes tasks of messages.

There is no queue here: each rendered message is a task of Django's task framework,
whose backends store and run it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from anymail.exceptions import AnymailConfigurationError, AnymailInvalidMailer
from anymail.message import AnymailRecipientStatus, AnymailStatus
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.db import transaction
from django.utils.module_loading import import_string

from django_lettermint.backend import EmailBackend as SendingBackend
from django_lettermint.backend import refuse_unused_hooks
from django_lettermint.conf import IDEMPOTENCY_KEY_TTL, looked_up, queue_config
from django_lettermint.exceptions import EnqueueFailed, LettermintInvalidMessage
from django_lettermint.outgoing import OutgoingMessage, notify
from django_lettermint.results import Outcome, RecipientResult, SendResult

from .queued import QueuedMessage
from .worker import sending_backend

if TYPE_CHECKING:
    from django.core.mail import EmailMessage
    from django.tasks import Task


class EmailBackend(BaseEmailBackend):
    """Renders messages and queues them for workers to send."""

    def __init__(self, **kwargs: Any) -> None:
        before = vars(self).copy()
        self._config = queue_config(kwargs)
        self._keywords = self._config.keywords
        super().__init__(**kwargs)
        # Before 6.1, Django's base class drops the alias.
        self.alias: str | None = kwargs.get("alias")
        self.fail_silently = self._config.fail_silently
        self._check_using()
        self._sender = sending_backend(self._config.using)
        self._check_deadline()
        self._task = self._configured_task()
        self._configured = {
            name: value for name, value in vars(self).items() if name not in before
        }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unused_hooks(cls, EmailBackend)

    # Copies and pickles: Django <= 6.0 leaves this backend on each message, too.
    __reduce__ = SendingBackend.__reduce__
    __copy__ = SendingBackend.__copy__
    __deepcopy__ = SendingBackend.__deepcopy__

    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """Queue each message on its own; return the number of messages queued.

        A message that cannot be queued ends here with `message_failed`, every other one
        in a worker. Raises the first error, with one SendResult per message in its
        `results`, unless the option `fail_silently` is set.
        """
        messages = email_messages or ()
        count = begun = 0
        results: list[SendResult] = []
        error: Exception | None = None
        call = looked_up.set({})  # each tenant is looked up once in a call
        try:
            for message in messages:
                outgoing = self.prepare(message)
                begun += 1
                count += self._queue(outgoing)
                results.append(outgoing.result)
                error = error or outgoing.error
        except Exception:  # from a pre_send receiver: the rest is not begun
            raise
        except BaseException:  # an interrupt: every message of a list gets its signal
            if isinstance(messages, list | tuple):
                for message in messages[begun:]:
                    outgoing = OutgoingMessage(message)
                    outgoing.interrupt()
                    notify(type(self._sender), outgoing)
            raise
        finally:
            looked_up.reset(call)
        if error and not self.fail_silently:
            error.results = tuple(results)  # type: ignore[attr-defined]
            raise error
        return count

    def enqueue(self, form: dict[str, Any]) -> None:
        """Add the JSON form of a message to the queue; override it for another queue."""
        self._task.enqueue(form)

    def prepare(self, message: EmailMessage) -> OutgoingMessage:
        """Render a message, and refuse it if a task cannot hold it.

        A subclass may change the message, and then call this.
        """
        outgoing = self._sender.prepare(message)
        size = max((each.envelope.size for each in outgoing.submissions), default=0)
        if size > self._config.max_bytes:
            outgoing.submissions = []
            outgoing.error = LettermintInvalidMessage(
                f"the message has {size} octets, the queue accepts "
                f"{self._config.max_bytes}: raise `max_bytes`, send it without the "
                "queue, or send large files as links"
            )
        return outgoing

    def _queue(self, outgoing: OutgoingMessage) -> bool:
        """Queue the message's tasks, or end it; return whether a task was queued."""
        tasks = self._tasks(outgoing)
        outgoing.submissions = []
        if not tasks:
            notify(type(self._sender), outgoing)
            return False
        if self._config.on_commit and not transaction.get_autocommit():
            after = partial(self._enqueue_all, outgoing, tasks)
            transaction.on_commit(after, robust=True)
            _record(outgoing, tasks, ["queued"] * len(tasks))
            return True
        return self._enqueue_all(outgoing, tasks)

    def _tasks(self, outgoing: OutgoingMessage) -> list[QueuedMessage]:
        """Return a task for each group of submissions that share their content."""
        groups = groupby(outgoing.submissions, key=lambda each: each.envelope.content)
        # The last attempt, too, must end before the relay forgets the key. The deadline
        # may be the tenant's.
        deadlines = (each.config.deadline for each in outgoing.submissions)
        latest = IDEMPOTENCY_KEY_TTL - max(deadlines, default=0.0)
        return [
            QueuedMessage(
                submissions=list(submissions),
                using=self._config.using,
                give_up_at=time.time() + min(self._config.give_up_after, latest),
                has_caller_key=outgoing.has_caller_key,
            )
            for _, submissions in groups
        ]

    def _enqueue_all(
        self, outgoing: OutgoingMessage, tasks: Sequence[QueuedMessage]
    ) -> bool:
        """Enqueue the tasks; at the first that fails, end the message.

        Returns whether a task was queued.
        """
        statuses = ["failed"] * len(tasks)
        try:
            for number, task in enumerate(tasks):
                # The task may be stored although enqueue() raises.
                statuses[number] = "unknown"
                self.enqueue(task.to_json())
                statuses[number] = "queued"
        except BaseException as error:  # an interrupt ends the message as well
            outgoing.error = self._failure(error)
            if not isinstance(error, Exception):
                raise
        finally:
            _record(outgoing, tasks, statuses)
            if outgoing.error:  # otherwise the worker sends the signal
                notify(type(self._sender), outgoing)
        return "queued" in statuses

    def _failure(self, error: BaseException) -> EnqueueFailed:
        failure = EnqueueFailed(
            f"the task backend {self._config.task_backend!r} raised "
            f"{type(error).__name__}: whether it has queued the message is unknown; see "
            "that its database or broker works, and look for the message before you send "
            "it again"
        )
        failure.__cause__ = error
        return failure

    def _check_deadline(self) -> None:
        deadline = self._sender.config.deadline
        if deadline >= IDEMPOTENCY_KEY_TTL:
            raise self._wrong(
                f"the mailer that sends has a `deadline` of {deadline:g} s: it must be "
                "less than a day, for which the relay remembers an idempotency key."
            )

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
            try:
                found = import_string(mailers.settings[using].get("BACKEND", ""))
            except ImportError:
                found = None
            if not (isinstance(found, type) and issubclass(found, SendingBackend)):
                ours = f"{SendingBackend.__module__}.{SendingBackend.__qualname__}"
                raise self._wrong(f"`using` is {using!r}: its BACKEND must be {ours}.")

    def _configured_task(self) -> Task[..., Any]:
        config = self._config
        try:
            # Imported late: Django then validates it against TASKS.
            from .task import send

            return send.using(
                backend=config.task_backend,
                queue_name=config.queue_name,
                priority=config.priority,
            )
        except ImportError as error:
            raise self._wrong(
                "Django has tasks since 6.0 only: "
                'pip install "django-lettermint-smtp[tasks]"'
            ) from error
        except Exception as error:  # task backends raise errors of any class
            raise self._wrong(
                "`task_backend`, `queue_name` and `priority` do not fit the setting "
                "TASKS, or TASKS has no backend 'default' with a queue 'default', which "
                f"must always exist: {error}"
            ) from error

    def _wrong(self, problem: str) -> AnymailConfigurationError:
        if self.alias is None:
            return AnymailConfigurationError(f"The queueing backend: {problem}")
        return AnymailInvalidMailer(problem, alias=self.alias)


def _record(
    outgoing: OutgoingMessage, tasks: Sequence[QueuedMessage], statuses: Sequence[str]
) -> None:
    """Set result and status of a message from the statuses of its tasks."""
    first = tasks[0].submissions[0].envelope
    by_address: dict[str, RecipientResult] = {}
    found: AnymailStatus = outgoing.message.anymail_status  # type: ignore[attr-defined]
    # For an address in several tasks, the status that is last in the alphabet is kept:
    # `unknown`, else `queued`, else `failed`.
    for status, task in sorted(zip(statuses, tasks, strict=True), key=itemgetter(0)):
        envelopes = [each.envelope for each in task.submissions]
        addresses = [address for each in envelopes for address in each.recipients]
        by_address |= dict.fromkeys(addresses, RecipientResult(status=status))
        anymail = AnymailRecipientStatus(envelopes[0].message_id, status)
        found.set_recipient_status(
            {
                outgoing.original_addresses.get(address, address): anymail
                for address in addresses
            }
        )
    outgoing.result = SendResult(
        # Only the worker will know; sending it again would duplicate it.
        outcome=Outcome.UNKNOWN,
        message_id=first.message_id,
        idempotency_key=first.idempotency_key,
        recipients=by_address,
    )
