"""The email backend: messages in, statuses, signals and errors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from anymail.backends.base import AnymailBaseBackend
from anymail.exceptions import AnymailCancelSend, AnymailError
from anymail.message import AnymailStatus
from anymail.signals import pre_send
from django.core import mail

from . import delivery, pool
from .conf import RelayConfig, backend_config
from .exceptions import LettermintError, LettermintInvalidMessage
from .extras import invalid_value
from .lanes import Lanes, Run
from .payload import LettermintPayload
from .report import Job, report
from .results import Outcome, Phase, SendResult
from .verdict import error_of, result_of

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .envelope import Envelope

#: Messages that are rendered before, and reported after, they go out together; a run
#: also ends with this many octets, so that memory does not grow with the list.
RUN_MESSAGES = 25
RUN_OCTETS = 8 * 1024 * 1024


class EmailBackend(AnymailBaseBackend):
    """Sends through Lettermint's SMTP relay, over connections the process shares."""

    esp_name = "Lettermint"

    def __init__(self, **kwargs: Any) -> None:
        config = backend_config(kwargs)
        super().__init__(**kwargs, send_defaults=config.send_defaults)
        # Before 6.1, Django's base class drops the alias. It warns about fail_silently
        # since 6.1, as Anymail's does: ours is an option like any other.
        self.alias = kwargs.get("alias")
        self.fail_silently = config.fail_silently
        self.correlation_key = config.correlation_key
        self._config = config.relay
        #: Seconds for connecting and for each reply; django-health-check sets it.
        self.timeout: float | None = config.relay.timeout

    @property
    def config(self) -> RelayConfig:
        """Return the relay's configuration, with the timeout that holds now."""
        if self.timeout in (None, self._config.timeout):
            return self._config
        return replace(self._config, timeout=float(self.timeout or 0))

    def __reduce__(self) -> tuple[Any, ...]:
        # Django <= 6.0 leaves the backend on each message it sent. Neither token nor
        # connection may travel with a pickle: the other side reads its own settings.
        return _rebuild, (type(self), self.alias)

    def open(self) -> bool | None:
        """See to it that a live connection is ready; return whether it is a new one.

        Nothing is held: connections belong to the process's pool.
        """
        config = self.config
        try:
            with pool.lease(config, seconds=config.deadline) as lease:
                return not lease.reused
        except LettermintError:
            if not self.fail_silently:
                raise
            return None

    def close(self) -> None:
        """Do nothing: the pool closes its connections by itself."""

    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """Send each message, whatever becomes of the others; return how many went out.

        Raises the first error, with one SendResult per message in its `results`, unless
        the option `fail_silently` is set.
        """
        results: list[SendResult] = []
        errors: list[Exception] = []

        def land(run: Run) -> None:
            with ExitStack() as reports:  # also after a receiver was interrupted
                for job in reversed(run):
                    reports.callback(report, type(self), job)
            for job in run:
                results.append(job.result)
                if job.error and not errors:
                    errors.append(job.error)

        with Lanes(self.config, land) as lanes:
            for run in self._runs(email_messages or ()):
                lanes.send(run)
        if errors and not self.fail_silently:
            errors[0].results = tuple(results)  # type: ignore[attr-defined]
            raise errors[0]
        return sum(result.outcome is Outcome.SENT for result in results)

    def repeat(self, envelopes: Iterable[Envelope]) -> SendResult:
        """Send the `envelopes` of a `repeatable` DeliveryUnknown once more, as they are.

        Safe for 24 hours from the first try: so long Lettermint knows their keys. There
        is no signal, as the message has had its own. Raises DeliveryUnknown if it is
        still unknown.
        """
        transactions = delivery.transactions(envelopes, self.config)
        for transaction in transactions:
            transaction.resume()
            if not transaction.repeatable:
                raise LettermintInvalidMessage(
                    "an envelope without idempotency key, or for a relay that would not "
                    "heed it, is not repeated: it could be delivered twice"
                )
        delivery.deliver([transactions], self.config)
        result, error = result_of(transactions), error_of(transactions)
        if error:
            error.result = result  # type: ignore[attr-defined]
            raise error
        return result

    def _runs(self, messages: Iterable[EmailMessage]) -> Iterator[Run]:
        """Prepare messages as they are taken; what breaks that off comes after them."""
        size = RUN_MESSAGES
        if isinstance(messages, Sized):
            size = min(size, -(-len(messages) // self._config.batch_connections))
        iterator = iter(messages)
        interruption: BaseException | None = None
        while not interruption:
            run: Run = []
            octets = 0
            try:
                for message in islice(iterator, size):
                    run.append(self.prepare(message))
                    octets += run[-1].octets
                    if octets > RUN_OCTETS:
                        break
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = error
                if not isinstance(error, Exception):  # not a pre_send receiver's
                    _give_up(run)
            if not run:
                break
            yield run
        if interruption:
            raise interruption

    def prepare(self, message: EmailMessage) -> Job:
        """Do all that can fail because of the message, before any network."""
        job = Job(message)
        given: object = message
        if not isinstance(given, mail.EmailMessage):
            job.error = invalid_value("a message", given, "give an EmailMessage")
            job.error.result = job.result
            job.silent = True  # no receiver could do anything with it
            return job
        message.anymail_status = AnymailStatus()  # type: ignore[attr-defined]
        try:
            pre_send.send(type(self), message=message, esp_name=self.esp_name)
        except AnymailCancelSend:
            job.end_silently(Phase.CANCELLED)
            return job
        try:
            if not message.recipients():
                job.end_silently(Phase.NO_RECIPIENTS)
                return job
            payload = LettermintPayload(message, self.send_defaults, self)
            prepared = payload.prepare()
            job.given, job.key_given = prepared.given, prepared.key_given
            job.transactions = delivery.transactions(prepared.envelopes, self.config)
        except AnymailError as error:
            job.error = error
        except Exception as error:  # noqa: BLE001 - a message's own code raises any
            job.error = LettermintInvalidMessage(
                f"the message cannot be prepared: {error} ({type(error).__name__}); "
                "check its addresses, headers, body and attachments"
            )
            job.error.__cause__ = error
        return job


def _give_up(run: Run) -> None:
    for job in run:
        for transaction in job.transactions:
            transaction.fail(None)


def _rebuild(cls: type[EmailBackend], alias: str | None) -> EmailBackend:
    if alias is None:
        return cls()
    # The name exists from Django 6.1 on, and so do aliases.
    backend: EmailBackend = getattr(mail, "mailers")[alias]  # noqa: B009
    return backend
