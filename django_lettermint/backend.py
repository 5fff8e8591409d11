"""The email backend: messages in, statuses, signals and errors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, Self

from anymail.backends.base import AnymailBaseBackend
from anymail.exceptions import (
    AnymailCancelSend,
    AnymailError,
    AnymailInvalidAddress,
)
from anymail.message import AnymailStatus
from anymail.signals import pre_send
from django.core import mail

from . import pool
from .conf import (
    Endpoint,
    Hidden,
    RelayConfig,
    backend_config,
    looked_up,
    tenant_config,
)
from .delivery import (
    BATCH_SIZE,
    LIST_PATIENCE,
    PATIENCE,
    BatchSender,
    Delivery,
    build_error,
    build_result,
    list_connections,
    submissions,
)
from .exceptions import LettermintError, LettermintInvalidMessage
from .extras import invalid_value
from .message import UNSET, active_extras, signed_tenant, tenant_of
from .outgoing import OutgoingMessage, notify
from .payload import Payload
from .results import Outcome, Phase, SendResult

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .envelope import Envelope

#: Octets of all batches that are sent at once. A batch ends when it has its share, so
#: that memory does not grow with the list.
BATCH_OCTETS = 8 * 1024 * 1024

_FILTER = "Anymail's signal pre_send, or override prepare()"
_STATUS = "the signals message_sent and message_failed"
_TLS = "the options `security` and `ca_file`"
#: Attributes that a tenant's options may change.
_OF_TENANTS = (
    "send_defaults",
    "correlation_key",
    "ignore_unsupported_features",
    "ignore_recipient_status",
    "debug_api_requests",
    "idna_encoder",
)
#: Hooks of other backends that are never called here, with what replaces them.
_UNUSED_HOOKS = {
    # Anymail's
    "build_message_payload": _FILTER,
    "post_to_esp": _FILTER,
    "run_pre_send": _FILTER,
    "run_post_send": _STATUS,
    "parse_recipient_status": _STATUS,
    "raise_for_recipient_status": _STATUS,
    # Django's
    "_send": _FILTER,
    "prep_address": _FILTER,
    "connection_class": _TLS,
    "ssl_context": _TLS,
}


class EmailBackend(AnymailBaseBackend):
    """Sends through Lettermint's SMTP relay, over connections the process shares."""

    esp_name = "Lettermint"

    def __init__(self, **kwargs: Any) -> None:
        before = vars(self).copy()
        config = backend_config(kwargs)
        # Not Anymail's constructor, which looks up each of its settings: that takes
        # longer than sending a mail. Its attributes are set here.
        super(AnymailBaseBackend, self).__init__(**kwargs)
        # Before 6.1, Django's base class drops the alias.
        self.alias: str | None = kwargs.get("alias")
        self.fail_silently = config.fail_silently
        self.ignore_unsupported_features = config.ignore_unsupported_features
        self.ignore_recipient_status = config.ignore_recipient_status
        self.debug_api_requests = config.debug_api_requests
        self.idna_encoder = config.idna_encoder
        self.send_defaults = dict(config.send_defaults)
        self.correlation_key = config.correlation_key
        self._config = config.relay
        self._keywords = config.keywords
        #: The tenant of messages that name none themselves.
        self.tenant: str | None = config.tenant or getattr(type(self), "tenant", None)
        self.has_tenants = config.tenants is not None
        #: Shared with all copies of this backend, and never pickled.
        self._whole_config = Hidden(config)
        #: Seconds for connecting and for each reply; django-health-check sets it.
        self.timeout: float | None = config.relay.timeout
        #: The attributes set here: a pickle holds those that were changed since then.
        self._configured = {
            name: value for name, value in vars(self).items() if name not in before
        }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unused_hooks(cls, EmailBackend)

    @property
    def config(self) -> RelayConfig:
        """Return the relay's configuration, with the backend's current `timeout`."""
        if self.timeout in (None, self._config.timeout):
            return self._config
        return replace(self._config, timeout=float(self.timeout or 0))

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(deepcopy(vars(self), memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        # Django <= 6.0 leaves the backend on each message that it sent. A pickle must
        # hold neither token nor connection: the process that loads it has its settings.
        harmless = ("fail_silently", "tenant")
        options = [name for name in self._keywords if name not in harmless]
        if options:
            raise TypeError(
                f"{type(self).__name__} with options of its own ({', '.join(options)}) is "
                "not pickled: its token must not leave this process, and without it the "
                "mail would go out under the token of the settings. Pickle the message "
                "without its connection, or use a backend of the settings or of a mailer."
            )
        configured = self._configured
        changed = {
            name: value
            for name, value in vars(self).items()
            if name not in configured
            or configured[name] is not value
            or name in self._keywords
        }
        del changed["_configured"]
        return _rebuild, (type(self), self.alias), changed

    def idna_encode(self, domain: str) -> str:
        """Encode a domain in ASCII by the option `idna_encoder`."""
        try:
            return str(self.idna_encoder(domain))
        except ValueError as error:
            raise AnymailInvalidAddress(
                f"{domain!r} is not a domain: {error}"
            ) from error

    def open(self) -> bool | None:
        """Make sure that the pool has a live connection; return whether it is new.

        Returns None after an error if `fail_silently` is set.
        """
        try:
            config = self.usual_sender().config
            with pool.lease(config, seconds=config.deadline) as connection:
                return not connection.reused
        except (LettermintError, LettermintInvalidMessage):
            if not self.fail_silently:
                raise
            return None

    def close(self) -> None:
        """Do nothing: connections belong to the pool, which closes them."""

    def send_messages(self, email_messages: Iterable[EmailMessage]) -> int:
        """Send each message, independent of the others; return how many went out.

        Raises the first error, with one SendResult per message in its `results`, unless
        the option `fail_silently` is set.
        """
        messages = email_messages or ()
        finished = _Finished(type(self), self._config.endpoint)
        call = looked_up.set({})  # each tenant is looked up once in a call
        try:
            self._deliver(messages, finished)
        except Exception:  # of a pre_send receiver or an iterator: the rest is not sent
            raise
        except BaseException:  # an interrupt: each message of a list ends
            if isinstance(messages, list | tuple):
                finished.interrupt(messages[len(finished.results) :])
            raise
        finally:
            looked_up.reset(call)
        if finished.error and not self.fail_silently:
            finished.error.results = tuple(finished.results)  # type: ignore[attr-defined]
            raise finished.error
        return sum(each.outcome is Outcome.SENT for each in finished.results)

    def repeat(self, envelopes: Iterable[Envelope]) -> SendResult:
        """Send the `envelopes` of a `repeatable` DeliveryUnknown again, as they are.

        Safe for 24 hours from the first try, while Lettermint remembers their keys.
        Sends no signal, as the message has had its own. Raises DeliveryUnknown if the
        outcome is still unknown.
        """
        envelopes = list(envelopes)
        tenants = {each.tenant for each in envelopes}
        if len(tenants) > 1:
            raise LettermintInvalidMessage(
                "envelopes of several tenants: repeat those of each by themselves"
            )
        tenant = next(iter(tenants), None)
        config = (self if tenant is None else self.for_tenant(tenant)).config
        repeated = submissions(envelopes, config)
        for submission in repeated:
            submission.resume()
            if not submission.repeatable:
                raise LettermintInvalidMessage(
                    "an envelope without idempotency key, or for a relay that does not "
                    "know such keys, is not repeated: it could be delivered twice; look it "
                    "up in the dashboard before you send the message again"
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
        if self.has_tenants:
            # If the tenant is unknown, prepare() ends each message with the error.
            with suppress(LettermintInvalidMessage):
                config = self.usual_sender().config
        count = len(messages) if isinstance(messages, Sized) else None
        with pool.open_pool(config) as connections:
            width = 1
            if count != 1:
                width = list_connections(config, connections.relay, count)
            size = BATCH_SIZE if count is None else min(BATCH_SIZE, ceil(count / width))
            if width == 1:
                patience = PATIENCE if count == 1 else LIST_PATIENCE
                delivery = Delivery(config, connections, patience=patience)
                for batch in self._batches(messages, size, BATCH_OCTETS):
                    try:
                        delivery.deliver_all([each.submissions for each in batch])
                    finally:
                        finished.add(batch)
                return
            with BatchSender(config, connections, finished.add, width=width) as sender:
                octets = BATCH_OCTETS // width
                for batch in self._batches(messages, size, octets):
                    sender.send(batch)

    def _batches(
        self, messages: Iterable[EmailMessage], size: int, most_octets: int
    ) -> Iterator[list[OutgoingMessage]]:
        """Prepare messages batch by batch; raise what interrupts it after the last."""
        iterator = iter(messages)
        interruption: BaseException | None = None
        while not interruption:
            batch: list[OutgoingMessage] = []
            octets = 0
            try:
                for message in islice(iterator, size):
                    # If prepare() is interrupted, the message ends as interrupted.
                    batch.append(OutgoingMessage(message))
                    batch[-1] = self.prepare(message)
                    octets += sum(each.envelope.size for each in batch[-1].submissions)
                    if octets > most_octets:
                        break
            except Exception as error:  # noqa: BLE001 - raised below
                # Of the iterator, or of a pre_send receiver: its message does not end.
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
        """Render a message, which finds all errors in it before the network is used.

        A subclass may change the message, and then call this.
        """
        given: object = message
        if not isinstance(given, mail.EmailMessage):
            error = invalid_value("a message", given, "give an EmailMessage")
            # Receivers expect an EmailMessage.
            return OutgoingMessage(message, error=error, suppress_signals=True)
        message.anymail_status = AnymailStatus()  # type: ignore[attr-defined]
        signed: object = UNSET
        try:
            if message.extra_headers:
                # Before receivers change the message that was signed.
                signed = signed_tenant(message)
        except Exception as error:  # noqa: BLE001 - properties of a message raise any
            return _refused(message, error)
        try:
            pre_send.send(type(self), message=message, esp_name=self.esp_name)
        except AnymailCancelSend:
            return OutgoingMessage.not_to_send(message, Phase.CANCELLED)
        tenant: object = None
        try:
            if not message.recipients():
                return OutgoingMessage.not_to_send(message, Phase.NO_RECIPIENTS)
            tenant = tenant_of(message, self.tenant, signed=signed)
            sender = self if tenant is None else self.for_tenant(tenant)
            return Payload(message, sender).prepare()
        except Exception as error:  # noqa: BLE001 - as above
            return _refused(message, error, tenant)

    def usual_sender(self) -> Self:
        """Return the backend for messages that name no tenant themselves."""
        tenant = active_extras().get("tenant", self.tenant)
        return self if tenant is None else self.for_tenant(tenant)

    def for_tenant(self, tenant: object) -> Self:
        """Return a copy of this backend with the options of a tenant.

        Raises LettermintInvalidMessage for an unknown tenant.
        """
        usual = self._whole_config.value
        config = tenant_config(usual, tenant)
        sender = copy(self)
        for name in _OF_TENANTS:
            if getattr(config, name) != getattr(usual, name):
                setattr(sender, name, getattr(config, name))
        if self.timeout == self._config.timeout:
            sender.timeout = config.relay.timeout
        vars(sender).update(_config=config.relay)
        return sender


@dataclass(slots=True, eq=False)
class _Finished:
    """The results of one call of `send_messages()`, in the order of its messages."""

    sender: type[EmailBackend]
    endpoint: Endpoint
    results: list[SendResult] = field(default_factory=list)
    #: The first error.
    error: Exception | None = None

    def add(self, batch: Sequence[OutgoingMessage]) -> None:
        """Report the end of each message, even if a receiver is interrupted."""
        try:
            with ExitStack() as notifications:
                for each in reversed(batch):
                    notifications.callback(notify, self.sender, each, self.endpoint)
        finally:
            for each in batch:
                self.results.append(each.result)
                self.error = self.error or each.error
                # They refer to each other, so that the octets would stay in memory
                # until the next garbage collection.
                each.submissions.clear()

    def interrupt(self, messages: Sequence[EmailMessage]) -> None:
        """End the messages that were not begun."""
        outgoing = [OutgoingMessage(message) for message in messages]
        for each in outgoing:
            each.interrupt()
        self.add(outgoing)


def _refused(
    message: EmailMessage, error: Exception, tenant: object = None
) -> OutgoingMessage:
    """Return a message that ends with an error before it is sent."""
    if not isinstance(error, AnymailError):
        what = type(error).__name__
        with suppress(Exception):  # its __str__() may be code of the message, too
            what = f"{error} ({what})"
        failure = LettermintInvalidMessage(
            f"the message cannot be prepared: {what}; "
            "check its addresses, headers, body and attachments"
        )
        failure.__cause__, error = error, failure
    name = tenant if isinstance(tenant, str) else None
    return OutgoingMessage(message, error=error, tenant=name)


def refuse_unused_hooks(cls: type, ours: type) -> None:
    """Raise TypeError if a subclass of `ours` overrides a method that is never called.

    It may filter recipients on a staging server: without it, real people get mail.
    """
    for base in cls.__mro__[: cls.__mro__.index(ours)]:
        for name in _UNUSED_HOOKS.keys() & vars(base).keys():
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} overrides {name}, which "
                f"{ours.__module__}.{ours.__qualname__} never calls: use "
                f"{_UNUSED_HOOKS[name]}"
            )


def _rebuild(cls: type[EmailBackend], alias: str | None) -> EmailBackend:
    if alias is None:
        return cls()
    # The name exists from Django 6.1 on, and so do aliases.
    backend: EmailBackend = getattr(mail, "mailers")[alias]  # noqa: B009
    return backend
