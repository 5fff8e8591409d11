"""From a message's attributes to envelopes: Anymail's walk, with our own stations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from anymail.backends.base import BasePayload
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.utils import concat_lists, force_non_lazy, is_lazy, last

from . import headers, parts
from .addresses import Mailbox, parse, parse_header, parse_one
from .draft import Draft
from .envelope import MAX_RECIPIENTS, Envelope, numbered
from .exceptions import LettermintInvalidMessage
from .extras import Layer, invalid, merge, resolve
from .message import SOURCES, active_extras, attribute_layer, default_layer

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .backend import EmailBackend

_ByRecipient: TypeAlias = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One message, ready for the network."""

    envelopes: Sequence[Envelope]
    #: The bare address as the caller wrote it, by its form on the wire.
    given: Mapping[str, str]
    #: The idempotency key is the caller's.
    key_given: bool


class LettermintPayload(BasePayload):
    """Collects what a message, its defaults and its surroundings say.

    The message itself is never changed: rendering works on a shallow copy.
    """

    backend: EmailBackend
    base_message_attrs = (  # type: ignore[assignment]
        ("from_email", last, None),
        ("to", concat_lists, None),
        ("cc", concat_lists, None),
        ("bcc", concat_lists, None),
        ("subject", last, force_non_lazy),
        ("reply_to", concat_lists, None),
        ("extra_headers", None, None),
        ("body", last, force_non_lazy),
        ("alternatives", concat_lists, None),
        ("attachments", concat_lists, None),
    )
    anymail_message_attrs = tuple(  # type: ignore[assignment]
        (
            name,
            parts.for_each(name) if name in BasePayload.batch_attrs else combine,
            None if name == "envelope_sender" else convert,
        )
        for name, combine, convert in BasePayload.anymail_message_attrs
        # Anymail merges the defaults in before we could tell who said what.
        if name not in SOURCES
    )

    def init_payload(self) -> None:
        self.copy = copy.copy(self.message)
        self.copy.bcc = []
        # None is how a message says that it has none.
        self.copy.subject = self.copy.body = ""
        self.sender: Mailbox | None = None
        self.recipients: dict[str, list[Mailbox]] = {"to": [], "cc": [], "bcc": []}
        self.merge_metadata: _ByRecipient = {}
        self.merge_headers: _ByRecipient = {}
        #: Who is named in a header, apart from recipients.
        self.named: list[Mailbox] = []

    def prepare(self) -> Prepared:
        """Render the message into one envelope, or with merge_* into one per `to`."""
        if self.sender is None:
            raise LettermintInvalidMessage("from_email: a message needs a sender")
        if not any(self.recipients.values()):
            raise LettermintInvalidMessage("to: a message needs to, cc or bcc")
        layers = self._layers()
        envelopes: list[Envelope] = []
        key_given = False
        number = 1
        for to in self._batches():
            draft = self._draft(layers, self.sender, to, number)
            envelope = draft.envelope(
                correlation_key=self.backend.correlation_key,
                idempotency=self.backend.config.idempotency,
            )
            envelopes.append(envelope)
            key_given = key_given or draft.extras.idempotency_key is not None
            # One with many recipients takes several transactions and their keys.
            number += -(-len(envelope.recipients) // MAX_RECIPIENTS)
        mailboxes = [each for kind in self.recipients.values() for each in kind]
        return Prepared(
            envelopes=envelopes,
            given={each.wire: each.given for each in mailboxes},
            key_given=key_given,
        )

    # -- Anymail calls these, in the order of the attributes ---------------------------

    def validate_not_bare_string(self, attr: str, value: object) -> None:
        if isinstance(value, list) or value is None:
            return
        is_text = isinstance(value, str | bytes) or is_lazy(value)
        if is_text or not isinstance(value, Iterable):
            raise invalid(attr, value, "use a list of addresses")

    def set_from_email_list(self, value: object) -> None:
        self.sender = parse_one("from_email", value, self.backend.idna_encode)
        self.named.append(self.sender)
        self.copy.from_email = self.sender.header

    def set_envelope_sender(self, value: object) -> None:
        self.sender = parse_one("envelope_sender", value, self.backend.idna_encode)

    def set_recipients(self, recipient_type: str, emails: Sequence[object]) -> None:
        mailboxes = parse(recipient_type, emails, self.backend.idna_encode)
        self.recipients[recipient_type] = mailboxes
        if recipient_type != "bcc":
            setattr(self.copy, recipient_type, [each.header for each in mailboxes])

    def set_subject(self, subject: object) -> None:
        self.copy.subject = parts.line_text("subject", subject)

    def set_reply_to(self, emails: Sequence[object]) -> None:
        mailboxes = parse("reply_to", emails, self.backend.idna_encode)
        self.named += mailboxes
        self.copy.reply_to = [each.header for each in mailboxes]

    def process_extra_headers(self, headers_: Mapping[str, object]) -> None:
        """Take our headers out, and spell those that Django looks up as it does."""
        default = cast("dict[str, object]", self.defaults.get("extra_headers") or {})
        self.default_extras, below = headers.split(default)
        self.raw_extras, own = headers.split(headers_ or {})
        parse_named = partial(self._parse_header, self.named)
        merged = parts.overlay({}, below, parse_named)
        self.copy.extra_headers = parts.overlay(merged, own, parse_named)

    def set_body(self, body: object) -> None:
        self.copy.body = body

    def set_alternatives(self, alternatives: Sequence[tuple[Any, str]]) -> None:
        if not hasattr(self.message, "alternatives") and alternatives:
            self.unsupported_feature("alternatives of a message that cannot have any")
        self.copy.alternatives = [parts.alternative(*each) for each in alternatives]

    def set_attachments(self, attachments: Sequence[Any]) -> None:
        self.copy.attachments = []
        for each in attachments:
            parts.attach(self.copy, each)

    def set_merge_metadata(self, merge_metadata: _ByRecipient) -> None:
        self.merge_metadata = merge_metadata

    def set_merge_headers(self, merge_headers: _ByRecipient) -> None:
        self.merge_headers = merge_headers

    def unsupported_feature(self, feature: str) -> None:
        # Without message, payload and backend, the error can be pickled.
        if not self.backend.ignore_unsupported_features:
            raise AnymailUnsupportedFeature(
                f"{self.esp_name} does not support {feature}"
            )

    # -- our own -----------------------------------------------------------------------

    def _parse_header(
        self, named: list[Mailbox], field: str, value: str
    ) -> list[Mailbox]:
        mailboxes = parse_header(field, value, self.backend.idna_encode)
        named += mailboxes
        return mailboxes

    def _layers(self) -> list[Layer]:
        """Return the sources of extras, lowest precedence first."""
        return [
            default_layer(self.defaults, self.unsupported_feature),
            self.default_extras,
            active_extras(),
            self.raw_extras,
            attribute_layer(self.message, self.unsupported_feature),
        ]

    def _batches(self) -> list[list[Mailbox]]:
        """Return who in `to` shares a copy of the message."""
        to = self.recipients["to"]
        if to and self.is_batch():
            return [[each] for each in {each.wire: each for each in to}.values()]
        return [to]

    def _draft(
        self, layers: list[Layer], sender: Mailbox, to: list[Mailbox], number: int
    ) -> Draft:
        message, named = self.copy, self.named
        own: Layer = {}
        if self.is_batch():
            message, own, named = self._merged(to)
        extras = resolve(*layers, own)
        if extras.idempotency_key and not own.get("idempotency_key"):
            key = numbered(extras.idempotency_key, number)
            extras = replace(extras, idempotency_key=key)
        return Draft(
            message=message,
            extras=extras,
            sender=sender,
            recipients=[*to, *self.recipients["cc"], *self.recipients["bcc"]],
            named=named,
        )

    def _merged(
        self, to: Sequence[Mailbox]
    ) -> tuple[EmailMessage, Layer, list[Mailbox]]:
        """Return one recipient's message, extras, and who is named in the headers."""
        message = copy.copy(self.copy)
        message.to = [each.header for each in to]
        named = list(self.named)
        layers: list[Layer] = []
        for mailbox in to:
            found, own = headers.split(self.merge_headers.get(mailbox.given, {}))
            message.extra_headers = parts.overlay(
                message.extra_headers, own, partial(self._parse_header, named)
            )
            metadata = self.merge_metadata.get(mailbox.given, {})
            layers += [found, {"metadata": metadata}]
        return message, merge(*layers), named
