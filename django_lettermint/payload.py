"""From a message's attributes to envelopes."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from anymail.backends.base import BasePayload
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.utils import (
    UNSET,
    concat_lists,
    force_non_lazy,
    is_lazy,
    last,
    merge_dicts_one_level,
)

from . import mime
from .delivery import submissions
from .envelope import MAX_SIZE, Envelope, derived_key
from .exceptions import LettermintInvalidMessage
from .extras import (
    TENANT,
    Extras,
    Layer,
    extract_extras,
    header_text,
    invalid_value,
    merge,
    render,
    resolve,
    single_line,
)
from .message import (
    SOURCES,
    active_extras,
    attribute_layer,
    default_layer,
    given_attributes,
)
from .outgoing import OutgoingMessage

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .backend import EmailBackend
    from .mime import Mailbox, Part

#: Under which an idempotency key gives the same message id in every process.
_NAMESPACE = uuid.UUID("6c5f0e0c-9f0c-5d59-9d67-2f1f3a3b8a56")

_ADDRESS_LISTS = ("to", "cc", "bcc", "reply_to")
_BY_RECIPIENT = ("merge_metadata", "merge_headers")
#: Attributes that are read, and how Anymail combines each with a send default.
_ATTRIBUTES = {
    **dict.fromkeys(("from_email", "envelope_sender", "subject", "body"), last),
    **dict.fromkeys((*_ADDRESS_LISTS, "alternatives", "attachments"), concat_lists),
    **dict.fromkeys(_BY_RECIPIENT, merge_dicts_one_level),
}
#: Other attributes of Anymail, for which Lettermint's relay has no header.
_UNSUPPORTED = tuple(
    name
    for name, *_ in BasePayload.anymail_message_attrs
    if name not in {*_ATTRIBUTES, *SOURCES}
)
_READ = _ATTRIBUTES | dict.fromkeys(_UNSUPPORTED, last)


class _Copy(NamedTuple):
    """The headers and extras of one envelope; with merge_*, each `to` has its own."""

    to: Sequence[Mailbox]
    headers: Mapping[str, str]
    extras: Extras


class Payload:
    """The content of a message, with send defaults and `extras()` blocks applied.

    The message itself is never changed. Raises LettermintInvalidMessage for an invalid
    message, here or in `prepare()`.
    """

    def __init__(self, message: EmailMessage, backend: EmailBackend) -> None:
        self.message = message
        self.backend = backend
        self.config = backend.config
        idna = self.idna = backend.idna_encode
        defaults = backend.send_defaults
        attributes = self.attributes = _attributes(message, defaults)
        for name in _UNSUPPORTED:
            if name in attributes:
                self.unsupported(name)
        if attributes.get("alternatives") and not hasattr(message, "alternatives"):
            self.unsupported("alternatives of a message that cannot have any")
        if "from_email" not in attributes:
            raise LettermintInvalidMessage("from_email: a message needs a sender")
        self.sender = mime.parse_one("from_email", attributes["from_email"], idna)
        self.to, self.cc, self.bcc, self.reply_to = (
            mime.parse(name, attributes.get(name, ()), idna) for name in _ADDRESS_LISTS
        )
        if not (self.to or self.cc or self.bcc):
            raise LettermintInvalidMessage("to: a message needs to, cc or bcc")
        #: For MAIL.
        self.mail_from = self.sender.address
        if "envelope_sender" in attributes:
            self.mail_from = _mail_from(attributes["envelope_sender"], idna)
        self.subject = single_line("subject", attributes.get("subject", ""))
        self.headers: Mapping[str, str] = {}
        #: The sources of extras, lowest precedence first.
        self.layers: list[Layer] = []
        if defaults:
            layer, below = _extract_shared(defaults.get("extra_headers") or {})
            self.headers = _merged_headers({}, below)
            self.layers = [default_layer(defaults, self.unsupported), layer]
        self.layers.append(active_extras())
        if message.extra_headers:
            layer, own = extract_extras(message.extra_headers)
            self.headers = _merged_headers(self.headers, own)
            self.layers.append(layer)
        self.layers.append(attribute_layer(message, self.unsupported))

    def unsupported(self, feature: str) -> None:
        """Raise for a feature that Lettermint lacks, unless such features are ignored."""
        # Without message, payload and backend, the error can be pickled.
        if not self.backend.ignore_unsupported_features:
            raise AnymailUnsupportedFeature(
                f"{self.backend.esp_name} does not support {feature}"
            )

    def prepare(self) -> OutgoingMessage:
        """Write the message into one envelope, or with merge_* into one per `to`."""
        # Copies differ in their header only, and share the octets of their body.
        body = None
        if mime.is_stock(self.message):
            body = mime.body(self.message, self.attributes, self.idna)
        keys: set[str | None] = set()
        envelopes = []
        for each in self._copies():
            key = each.extras.idempotency_key
            if key is not None and key in keys:
                raise LettermintInvalidMessage(
                    "idempotency_key: two recipients have the same in merge_headers; "
                    "the relay would drop the message to the second"
                )
            keys.add(key)
            envelopes.append(self._envelope(each, body))
        # Of an address that is named twice, the first spelling counts.
        mailboxes = reversed([*self.to, *self.cc, *self.bcc])
        return OutgoingMessage(
            self.message,
            submissions=submissions(envelopes, self.config),
            original_addresses={each.address: each.given for each in mailboxes},
            has_caller_key=keys != {None},
            tenant=self.config.endpoint.tenant,
        )

    def _copies(self) -> Iterator[_Copy]:
        # With merge_data, even if it is ignored, no recipient sees the others.
        if not self.to or self.attributes.keys().isdisjoint(BasePayload.batch_attrs):
            yield _Copy(self.to, self.headers, resolve(*self.layers))
            return
        merge_headers, merge_metadata = (
            self.attributes.get(name, {})
            for name in ("merge_headers", "merge_metadata")
        )
        for number, mailbox in enumerate(_distinct(self.to)):
            found, own = _extract_shared(merge_headers.get(mailbox.given, {}))
            layer = merge(found, {"metadata": merge_metadata.get(mailbox.given, {})})
            extras = resolve(*self.layers, layer)
            if extras.idempotency_key and number and not layer.get("idempotency_key"):
                # The copies of one message differ in content: no part of any of them
                # may ever have the key of another.
                key = derived_key(extras.idempotency_key, "copy", mailbox.key)
                extras = replace(extras, idempotency_key=key)
            yield _Copy([mailbox], _merged_headers(self.headers, own), extras)

    def _envelope(self, each: _Copy, body: Part | None) -> Envelope:
        extras, correlation_key = each.extras, self.backend.correlation_key
        key = extras.idempotency_key
        own_id = str(uuid.uuid5(_NAMESPACE, key) if key else uuid.uuid4())
        message_id, own_metadata = own_id, {}
        if correlation_key and correlation_key in extras.metadata:
            message_id = extras.metadata[correlation_key]  # the caller's
        elif correlation_key:
            own_metadata = {correlation_key: own_id}
        lines = render(extras, own_metadata)
        if key is None and self.config.idempotency:
            key = own_id
        if body is None:
            part = self._built(each)
        else:
            lists = {
                "From": [self.sender],
                "To": each.to,
                "Cc": self.cc,
                "Reply-To": self.reply_to,
            }
            header = mime.header(self.subject, lists, each.headers, self.idna)
            part = mime.Part(header + body.head, body.body)
        named = [*each.to, *self.cc, *self.bcc]
        recipients = [one.address for one in _distinct(named)]
        envelope = Envelope(
            mail_from=self.mail_from,
            recipients=tuple(recipients),
            header=lines + part.head,
            body=part.body,
            message_id=message_id,
            idempotency_key=key,
            # Nothing but local parts is raw in a header.
            smtputf8=not (
                part.head.isascii()
                and all(map(str.isascii, (self.mail_from, *recipients)))
            ),
            tenant=self.config.endpoint.tenant,
        )
        if envelope.size > MAX_SIZE:
            raise LettermintInvalidMessage(
                f"the message has {envelope.size} octets, Lettermint accepts "
                f"{MAX_SIZE} (25 MB): send large files as links"
            )
        return envelope

    def _built(self, each: _Copy) -> Part:
        """Write a copy that another class than Django's builds."""
        message = copy.copy(self.message)
        message.subject, message.from_email = self.subject, self.sender.text
        message.body = force_non_lazy(self.attributes.get("body", ""))
        message.attachments = self.attributes.get("attachments", [])
        if "alternatives" in self.attributes:
            message.alternatives = self.attributes["alternatives"]  # type: ignore[attr-defined] # of subclasses
        message.to, message.cc, message.reply_to = (
            [mailbox.text for mailbox in mailboxes]
            for mailboxes in (each.to, self.cc, self.reply_to)
        )
        message.bcc = []
        message.extra_headers = dict(each.headers)
        return mime.render(message, self.idna)


def _attributes(message: EmailMessage, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a message, combined with the send defaults.

    An explicit None removes the default.
    """
    found = given_attributes(message, _READ)
    for name in _ADDRESS_LISTS:
        value = found.get(name)
        if value is not None and not isinstance(value, list):
            is_text = isinstance(value, str | bytes) or is_lazy(value)
            if is_text or not isinstance(value, Iterable):
                raise invalid_value(name, value, "use a list of addresses")
    for name in _BY_RECIPIENT:
        for layer in (defaults.get(name), found.get(name)):
            values = layer.values() if isinstance(layer, Mapping) else [layer]
            if layer is not None and not all(isinstance(v, Mapping) for v in values):
                rule = "use a mapping of addresses to mappings"
                raise invalid_value(name, layer, rule)
    for name in _READ.keys() & defaults.keys():
        found[name] = _READ[name](defaults[name], found.get(name, UNSET))
    return {
        name: value
        for name, value in found.items()
        if value is not None and value is not UNSET
    }


def _mail_from(value: object, idna: mime.IdnaEncode) -> str:
    """Return an address; empty for automatic replies (RFC 5321 section 4.5.5)."""
    if str(value).strip() in {"", "<>"}:
        return ""
    return mime.parse_one("envelope_sender", value, idna).address


def _merged_headers(
    below: Mapping[str, str], own: Mapping[str, object]
) -> Mapping[str, str]:
    """Lay headers over others of the same names, in any letter case."""
    if not own:
        return below
    names = {name.lower() for name in own}
    kept = {name: value for name, value in below.items() if name.lower() not in names}
    return kept | {name: header_text(name, value) for name, value in own.items()}


def _extract_shared(
    headers: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object]]:
    """Divide headers that are shared by messages, which cannot name a tenant."""
    layer, others = extract_extras(headers)
    if "signed_tenant" in layer:
        raise LettermintInvalidMessage(
            f"header {TENANT}: only freeze() writes it, for one whole message; "
            "set the tenant in the message's attribute, or as the option `tenant`"
        )
    return layer, others


def _distinct(mailboxes: Sequence[Mailbox]) -> Iterable[Mailbox]:
    """Leave out addresses that are named twice."""
    if len(mailboxes) == 1:
        return mailboxes
    found: dict[str, Mailbox] = {}
    for each in mailboxes:
        found.setdefault(each.key, each)
    return found.values()
