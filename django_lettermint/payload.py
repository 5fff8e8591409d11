"""From a message's attributes to envelopes: Anymail's walk, with our own stations."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from anymail.backends.base import BasePayload
from anymail.exceptions import AnymailUnsupportedFeature
from anymail.utils import (
    UNSET,
    concat_lists,
    force_non_lazy,
    last,
    merge_dicts_one_level,
)

from . import headers, parts
from .addresses import Mailbox, parse, parse_header, parse_one
from .envelope import MAX_RECIPIENTS, MAX_SIZE, Envelope, numbered
from .exceptions import LettermintInvalidMessage
from .extras import Extras, Layer, merge, resolve
from .message import active_extras, attribute_layer
from .rendering import render

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .backend import EmailBackend

_EXTRAS = ("route", "tag", "tags", "metadata", "idempotency_key", "esp_extra")
#: Under which an idempotency key gives the same message id in every process.
_NAMESPACE = uuid.UUID("6c5f0e0c-9f0c-5d59-9d67-2f1f3a3b8a56")


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
        {
            "envelope_sender": ("envelope_sender", last, None),
            "merge_headers": ("merge_headers", merge_dicts_one_level, None),
        }.get(name, (name, combine, convert))
        for name, combine, convert in BasePayload.anymail_message_attrs
        # Anymail merges the defaults in before we could tell who said what.
        if name not in _EXTRAS
    )

    def init_payload(self) -> None:
        self.copy = copy.copy(self.message)
        self.copy.bcc = []
        # None is how a message says that it has none.
        self.copy.subject = self.copy.body = ""
        self.sender: Mailbox | None = None
        self.recipients: dict[str, list[Mailbox]] = {"to": [], "cc": [], "bcc": []}
        self.merge_metadata: Mapping[str, Mapping[str, object]] = {}
        self.merge_headers: Mapping[str, Mapping[str, object]] = {}
        #: Who is named in any header or command, apart from those in `to`.
        self.mailboxes: list[Mailbox] = []
        self.key_given = False

    def prepare(self) -> Prepared:
        """Render the message into one envelope, or with merge_* into one per `to`."""
        if self.sender is None:
            raise LettermintInvalidMessage("from_email: a message needs a sender")
        to = self.recipients["to"]
        batches = [to]
        if to and self.is_batch():
            batches = [[each] for each in {each.wire: each for each in to}.values()]
        layers = self._layers()
        envelopes: list[Envelope] = []
        number = 1
        for batch in batches:
            envelopes.append(self._envelope(layers, self.sender, batch, number))
            # One with many recipients takes several transactions and their keys.
            number += -(-len(envelopes[-1].recipients) // MAX_RECIPIENTS)
        mailboxes = [each for kind in self.recipients.values() for each in kind]
        return Prepared(
            envelopes=envelopes,
            given={each.wire: each.given for each in mailboxes},
            key_given=self.key_given,
        )

    # -- Anymail calls these, in the order of the attributes ---------------------------

    def set_from_email_list(self, value: object) -> None:
        self.sender = self._parse_sender("from_email", value)
        self.copy.from_email = self.sender.header

    def set_envelope_sender(self, value: object) -> None:
        self.sender = self._parse_sender("envelope_sender", value)

    def set_recipients(self, recipient_type: str, emails: Sequence[object]) -> None:
        mailboxes = parse(recipient_type, emails, self.backend.idna_encode)
        self.recipients[recipient_type] = mailboxes
        if recipient_type != "to":
            self.mailboxes += mailboxes
        if recipient_type != "bcc":
            setattr(self.copy, recipient_type, [each.header for each in mailboxes])

    def set_subject(self, subject: object) -> None:
        self.copy.subject = parts.line_text("subject", subject)

    def set_reply_to(self, emails: Sequence[object]) -> None:
        mailboxes = parse("reply_to", emails, self.backend.idna_encode)
        self.mailboxes += mailboxes
        self.copy.reply_to = [each.header for each in mailboxes]

    def process_extra_headers(self, headers_: Mapping[str, object]) -> None:
        """Take our headers out, and spell those that Django looks up as it does."""
        default = cast("dict[str, object]", self.defaults.get("extra_headers") or {})
        self.default_extras, below = headers.split(default)
        self.raw_extras, own = headers.split(headers_ or {})
        merged = parts.overlay({}, below, self._parse_header)
        self.copy.extra_headers = parts.overlay(merged, own, self._parse_header)

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

    def set_merge_metadata(
        self, merge_metadata: Mapping[str, Mapping[str, object]]
    ) -> None:
        self.merge_metadata = merge_metadata

    def set_merge_headers(
        self, merge_headers: Mapping[str, Mapping[str, object]]
    ) -> None:
        self.merge_headers = merge_headers

    def unsupported_feature(self, feature: str) -> None:
        # Without message, payload and backend, the error can be pickled.
        if not self.backend.ignore_unsupported_features:
            raise AnymailUnsupportedFeature(
                f"{self.esp_name} does not support {feature}"
            )

    # -- our own -----------------------------------------------------------------------

    def _parse_sender(self, field: str, value: object) -> Mailbox:
        mailbox = parse_one(field, value, self.backend.idna_encode)
        self.mailboxes.append(mailbox)
        return mailbox

    def _parse_header(self, field: str, value: str) -> list[Mailbox]:
        mailboxes = parse_header(field, value, self.backend.idna_encode)
        self.mailboxes += mailboxes
        return mailboxes

    def _layers(self) -> list[Layer]:
        """Return the sources of extras, lowest precedence first."""
        own = attribute_layer(self.message, self.unsupported_feature)
        layers = [self.default_extras, active_extras(), self.raw_extras, own]
        if self.defaults:
            names = {name: self.defaults.get(name, UNSET) for name in _EXTRAS}
            default = cast("EmailMessage", SimpleNamespace(**names))
            layers.insert(0, attribute_layer(default, self.unsupported_feature))
        return layers

    def _envelope(
        self,
        layers: list[Layer],
        sender: Mailbox,
        to: Sequence[Mailbox],
        number: int,
    ) -> Envelope:
        message = self.copy
        own: Layer = {}
        if self.is_batch():
            message, own = self._merged(to)
        extras = resolve(*layers, own)
        given_key = extras.idempotency_key
        if given_key and not own.get("idempotency_key"):
            given_key = numbered(given_key, number)
        self.key_given = self.key_given or bool(given_key)
        lines, message_id = self._lines(extras, given_key)
        smtputf8 = any(each.smtputf8 for each in (*to, *self.mailboxes))
        content = lines + render(message, utf8=smtputf8)
        if len(content) > MAX_SIZE:
            raise LettermintInvalidMessage(
                f"the message has {len(content)} octets, Lettermint takes {MAX_SIZE} "
                "(25 MB): send large files as links"
            )
        everybody = [*to, *self.recipients["cc"], *self.recipients["bcc"]]
        return Envelope(
            mail_from=sender.wire,
            # An address named twice is sent once.
            recipients=tuple(dict.fromkeys(each.wire for each in everybody)),
            content=content,
            message_id=message_id,
            idempotency_key=given_key or self._new_key(),
            smtputf8=smtputf8,
        )

    def _merged(self, to: Sequence[Mailbox]) -> tuple[EmailMessage, Layer]:
        """Return the message as one recipient gets it, and that one's extras."""
        message = copy.copy(self.copy)
        message.to = [each.header for each in to]
        layers: list[Layer] = []
        for mailbox in to:
            found, own = headers.split(self.merge_headers.get(mailbox.given, {}))
            message.extra_headers = parts.overlay(
                message.extra_headers, own, self._parse_header
            )
            metadata = self.merge_metadata.get(mailbox.given, {})
            layers += [found, {"metadata": metadata}]
        return message, merge(*layers)

    def _lines(self, extras: Extras, key: str | None) -> tuple[bytes, str]:
        """Return our header lines, and the message id that they carry."""
        name = self.backend.correlation_key
        message_id = extras.metadata.get(name) if name else None
        if message_id is None:
            message_id = str(uuid.uuid5(_NAMESPACE, key) if key else uuid.uuid4())
            if name:
                line = headers.metadata_line(name, message_id)
                return headers.render(extras) + line, message_id
        return headers.render(extras), message_id

    def _new_key(self) -> str | None:
        return str(uuid.uuid4()) if self.backend.config.idempotency else None
