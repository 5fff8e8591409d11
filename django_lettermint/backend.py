"""The email backend: messages in, statuses, signals and errors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from anymail.backends.base import AnymailBaseBackend
from anymail.exceptions import AnymailCancelSend, AnymailError
from anymail.message import AnymailStatus
from anymail.signals import pre_send
from django.core import mail

from . import pool
from .conf import Endpoint, RelayConfig, backend_config
from .delivery import (
    LIST_PATIENCE,
    PATIENCE,
    BatchSender,
    Delivery,
    build_error,
    build_result,
    submissions,
)
from .exceptions import LettermintError, LettermintInvalidMessage
from .outgoing import OutgoingMessage, notify
from .payload import LettermintPayload
from .results import Outcome, Phase, SendResult

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .envelope import Envelope

#: Messages that are rendered before, and reported after, they go out together; a batch
#: also ends with this many octets, so that memory does not grow with the list.
BATCH_SIZE = 25
BATCH_OCTETS = 8 * 1024 * 1024


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
        """Make sure that a live connection is ready; return whether it is a new one.

        Nothing is held: connections belong to the process's pool.
        """
        config = self.config
        try:
            with pool.lease(config, seconds=config.deadline) as connection:
                return not connection.reused
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
        messages = email_messages or ()
        finished = _Finished(type(self), self._config.endpoint)
        try:
            self._deliver(messages, finished)
        except Exception:  # a pre_send receiver's
            raise
        except BaseException:
            if isinstance(messages, list | tuple):
                finished.interrupt(messages[len(finished.results) :])
            raise
        if finished.error and not self.fail_silently:
            finished.error.results = tuple(finished.results)  # type: ignore[attr-defined]
            raise finished.error
        return sum(each.outcome is Outcome.SENT for each in finished.results)

    def repeat(self, envelopes: Iterable[Envelope]) -> SendResult:
        """Send the `envelopes` of a `repeatable` DeliveryUnknown once more, as they are.

        Safe for 24 hours from the first try: so long Lettermint knows their keys. There
        is no signal, as the message has had its own. Raises DeliveryUnknown if it is
        still unknown.
        """
        config = self.config
        repeated = submissions(envelopes, config)
        for submission in repeated:
            submission.resume()
            if not submission.repeatable:
                raise LettermintInvalidMessage(
                    "an envelope without idempotency key, or for a relay that does not "
                    "know such keys, is not repeated: it could be delivered twice"
                )
        with pool.open_pool(config) as connections:
            Delivery(config, connections).deliver([repeated])
        result, error = build_result(repeated), build_error(repeated)
        if error:
            error.result = result  # type: ignore[attr-defined]
            raise error
        return result

    def _deliver(self, messages: Iterable[EmailMessage], finished: _Finished) -> None:
        config = self.config
        count = len(messages) if isinstance(messages, Sized) else None
        width = config.batch_connections
        size = BATCH_SIZE if count is None else min(BATCH_SIZE, -(-count // width))
        with pool.open_pool(config) as connections:
            if width == 1:
                patience = PATIENCE if count == 1 else LIST_PATIENCE
                delivery = Delivery(config, connections, patience=patience)
                for batch in self._batches(messages, size):
                    try:
                        delivery.deliver([each.submissions for each in batch])
                    finally:
                        finished.add(batch)
                return
            with BatchSender(config, connections, finished.add, width=width) as sender:
                for batch in self._batches(messages, size):
                    sender.send(batch)

    def _batches(
        self, messages: Iterable[EmailMessage], size: int
    ) -> Iterator[list[OutgoingMessage]]:
        """Prepare messages as they are taken; what interrupts that is raised after them."""
        iterator = iter(messages)
        interruption: BaseException | None = None
        while not interruption:
            batch: list[OutgoingMessage] = []
            octets = 0
            try:
                for message in islice(iterator, size):
                    batch.append(OutgoingMessage(message))
                    self._prepare(batch[-1])
                    octets += batch[-1].octets
                    if octets > BATCH_OCTETS:
                        break
            except Exception as error:  # noqa: BLE001 - raised below
                # A pre_send receiver's: its message has no end. Or the iterator's.
                interruption = error
                if batch and not batch[-1].prepared:
                    batch.pop()
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = error
                for each in batch:
                    each.interrupt()
            if not batch:
                break
            yield batch
        if interruption:
            raise interruption

    def prepare(self, message: EmailMessage) -> OutgoingMessage:
        """Do all that can fail because of the message, before any network."""
        outgoing = OutgoingMessage(message)
        self._prepare(outgoing)
        return outgoing

    def _prepare(self, outgoing: OutgoingMessage) -> None:
        message = outgoing.message
        message.anymail_status = AnymailStatus()  # type: ignore[attr-defined]
        try:
            pre_send.send(type(self), message=message, esp_name=self.esp_name)
        except AnymailCancelSend:
            outgoing.end_silently(Phase.CANCELLED)
            return
        try:
            if not message.recipients():
                outgoing.end_silently(Phase.NO_RECIPIENTS)
                return
            payload = LettermintPayload(message, self.send_defaults, self)
            prepared = payload.prepare()
        except AnymailError as error:
            outgoing.error = error
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            outgoing.error = LettermintInvalidMessage(
                f"the message cannot be prepared: {error} ({type(error).__name__}); "
                "check its addresses, headers, body and attachments"
            )
            outgoing.error.__cause__ = error
        else:
            outgoing.original_addresses = prepared.given
            outgoing.has_caller_key = prepared.key_given
            outgoing.submissions = submissions(prepared.envelopes, self.config)


class _Finished:
    """The results of one call of `send_messages()`, in the order of its messages."""

    def __init__(self, sender: type[EmailBackend], endpoint: Endpoint) -> None:
        self._sender = sender
        self._endpoint = endpoint
        self.results: list[SendResult] = []
        #: The first error.
        self.error: Exception | None = None

    def add(self, batch: Sequence[OutgoingMessage]) -> None:
        """Report the end of each message, also after a receiver was interrupted."""
        try:
            with ExitStack() as notifications:
                for each in reversed(batch):
                    notifications.callback(notify, self._sender, each, self._endpoint)
        finally:
            for each in batch:
                self.results.append(each.result)
                self.error = self.error or each.error

    def interrupt(self, messages: Sequence[EmailMessage]) -> None:
        """End the messages that were not reached."""
        outgoing = [OutgoingMessage(message) for message in messages]
        for each in outgoing:
            each.message.anymail_status = AnymailStatus()  # type: ignore[attr-defined]
            each.interrupt()
        self.add(outgoing)


def _rebuild(cls: type[EmailBackend], alias: str | None) -> EmailBackend:
    if alias is None:
        return cls()
    # The name exists from Django 6.1 on, and so do aliases.
    backend: EmailBackend = getattr(mail, "mailers")[alias]  # noqa: B009
    return backend
