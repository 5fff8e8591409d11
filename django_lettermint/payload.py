"""From a message's attributes to envelopes: Anymail's walk over its attributes."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

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
from django.core.mail import EmailAlternative, EmailAttachment, EmailMessage

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
    metadata_line,
    render,
    resolve,
    single_line,
)
from .message import SOURCES, active_extras, attribute_layer, default_layer
from .outgoing import OutgoingMessage

if TYPE_CHECKING:
    from .backend import EmailBackend
    from .mime import Mailbox

_ByRecipient: TypeAlias = Mapping[str, Mapping[str, object]]

#: Under which an idempotency key gives the same message id in every process.
_NAMESPACE = uuid.UUID("6c5f0e0c-9f0c-5d59-9d67-2f1f3a3b8a56")
#: Headers that Django looks up under exactly these names.
_LOOKED_UP = {name.lower(): name for name in ("From", "To", "Cc", "Reply-To")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """What a message is to its recipients: all of them, or with merge_* one."""

    message: EmailMessage
    extras: Extras
    to: Sequence[Mailbox]


def merge_per_recipient(field: str) -> Any:
    """Return the function that merges mappings of recipients to what they alone have."""

    def combine(*layers: Any) -> Any:
        for layer in layers:
            if layer is UNSET or layer is None:
                continue
            values = layer.values() if isinstance(layer, Mapping) else [layer]
            if not all(isinstance(value, Mapping) for value in values):
                rule = "use a mapping of addresses to mappings"
                raise invalid_value(field, layer, rule)
        return merge_dicts_one_level(*layers)

    return combine


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
            merge_per_recipient(name) if name in BasePayload.batch_attrs else combine,
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
        #: For MAIL; empty for automatic replies (RFC 5321 section 4.5.5).
        self.mail_from: str | None = None
        self.recipients: dict[str, list[Mailbox]] = {"to": [], "cc": [], "bcc": []}
        self.merge_metadata: _ByRecipient = {}
        self.merge_headers: _ByRecipient = {}

    def prepare(self) -> OutgoingMessage:
        """Write the message into one envelope, or with merge_* into one per `to`.

        Raises LettermintInvalidMessage for whatever is wrong with any of them.
        """
        if self.sender is None:
            raise LettermintInvalidMessage("from_email: a message needs a sender")
        if not any(self.recipients.values()):
            raise LettermintInvalidMessage("to: a message needs to, cc or bcc")
        layers = self._layers()
        copies: Iterable[_Copy] = self._copies(layers)
        if self.is_batch():
            keys = self._checked_keys(copies)
            copies = self._copies(layers)
        else:
            copies = list(copies)
            keys = {each.extras.idempotency_key for each in copies}
        mailboxes = [each for kind in self.recipients.values() for each in kind]
        return OutgoingMessage(
            self.message,
            submissions=submissions(self._envelopes(copies), self.backend.config),
            original_addresses={
                each.address: each.given for each in reversed(mailboxes)
            },
            has_caller_key=keys != {None},
            tenant=self.backend.config.endpoint.tenant,
        )

    # -- Anymail calls these, in the order of the attributes ---------------------------

    def validate_not_bare_string(self, attr: str, value: object) -> None:
        if isinstance(value, list) or value is None:
            return
        is_text = isinstance(value, str | bytes) or is_lazy(value)
        if is_text or not isinstance(value, Iterable):
            raise invalid_value(attr, value, "use a list of addresses")

    def set_from_email_list(self, value: object) -> None:
        self.sender = mime.parse_one("from_email", value, self.backend.idna_encode)
        self.copy.from_email = self.sender.text

    def set_envelope_sender(self, value: object) -> None:
        if str(value).strip() in {"", "<>"}:
            self.mail_from = ""
        else:
            idna = self.backend.idna_encode
            self.mail_from = mime.parse_one("envelope_sender", value, idna).address

    def set_recipients(self, recipient_type: str, emails: Sequence[object]) -> None:
        mailboxes = mime.parse(recipient_type, emails, self.backend.idna_encode)
        self.recipients[recipient_type] = mailboxes
        if recipient_type != "bcc":
            setattr(self.copy, recipient_type, [each.text for each in mailboxes])

    def set_subject(self, subject: object) -> None:
        self.copy.subject = single_line("subject", subject)

    def set_reply_to(self, emails: Sequence[object]) -> None:
        mailboxes = mime.parse("reply_to", emails, self.backend.idna_encode)
        self.copy.reply_to = [each.text for each in mailboxes]

    def process_extra_headers(self, headers: Mapping[str, object]) -> None:
        """Take our headers out, and spell those that Django looks up as it does."""
        default = cast("dict[str, object]", self.defaults.get("extra_headers") or {})
        self.default_extras, below = _extract_shared(default)
        self.raw_extras, own = extract_extras(headers or {})
        self.copy.extra_headers = self._merged_headers(
            self._merged_headers({}, below), own
        )

    def set_body(self, body: object) -> None:
        self.copy.body = body

    def set_alternatives(self, alternatives: Sequence[Any]) -> None:
        if not hasattr(self.message, "alternatives") and alternatives:
            self.unsupported_feature("alternatives of a message that cannot have any")
        checked = [
            EmailAlternative(*mime.check_alternative(each)) for each in alternatives
        ]
        self.copy.alternatives = checked

    def set_attachments(self, attachments: Sequence[Any]) -> None:
        checked = [mime.check_attachment(each) for each in attachments]
        self.copy.attachments = [
            EmailAttachment(*each) if isinstance(each, tuple) else each
            for each in checked
        ]

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

    def _layers(self) -> list[Layer]:
        """Return the sources of extras, lowest precedence first."""
        return [
            default_layer(self.defaults, self.unsupported_feature),
            self.default_extras,
            active_extras(),
            self.raw_extras,
            attribute_layer(self.message, self.unsupported_feature),
        ]

    def _copies(self, layers: list[Layer]) -> Iterator[_Copy]:
        """Make what goes to each recipient, with merge_*, or to all."""
        to = self.recipients["to"]
        if not (to and self.is_batch()):
            yield _Copy(message=self.copy, extras=resolve(*layers), to=to)
            return
        for number, mailbox in enumerate(_distinct(to)):
            message, own = self._merged(mailbox)
            extras = resolve(*layers, own)
            if extras.idempotency_key and number and not own.get("idempotency_key"):
                # The copies of one message differ in content: no part of any of them
                # may ever have the key of another.
                key = derived_key(extras.idempotency_key, "copy", mailbox.key)
                extras = replace(extras, idempotency_key=key)
            yield _Copy(message=message, extras=extras, to=[mailbox])

    def _checked_keys(self, copies: Iterable[_Copy]) -> set[str | None]:
        """Look for what is wrong with any copy, before the first is sent."""
        keys: set[str | None] = set()
        for each in copies:
            key = each.extras.idempotency_key
            if key is not None and key in keys:
                raise LettermintInvalidMessage(
                    "idempotency_key: two recipients have the same in merge_headers; "
                    "the relay would drop the message to the second"
                )
            keys.add(key)
            render(each.extras)
            if mime.is_stock(each.message):
                mime.header(each.message, self.backend.idna_encode)
        return keys

    def _envelopes(self, copies: Iterable[_Copy]) -> Iterator[Envelope]:
        body = None
        if mime.is_stock(self.copy):  # copies differ in their header only
            body = mime.body(self.copy, self.backend.idna_encode)
        for each in copies:
            yield self._envelope(each, body)

    def _merged(self, to: Mailbox) -> tuple[EmailMessage, Layer]:
        """Return one recipient's message and extras."""
        message = copy.copy(self.copy)
        message.to = [to.text]
        found, own = _extract_shared(self.merge_headers.get(to.given, {}))
        message.extra_headers = self._merged_headers(message.extra_headers, own)
        metadata = self.merge_metadata.get(to.given, {})
        return message, merge(found, {"metadata": metadata})

    def _merged_headers(
        self, below: Mapping[str, str], own: Mapping[str, object]
    ) -> dict[str, str]:
        """Lay headers over others of the same names, in any letter case."""
        names = {name.lower() for name in own}
        kept = {
            name: value for name, value in below.items() if name.lower() not in names
        }
        for name, value in own.items():
            text = header_text(name, value)
            if name.lower() in mime.ADDRESS_FIELDS and not text.isascii():
                # An own message() would encode domains by IDNA 2003, which leads elsewhere.
                text = mime.address_text(name, text, self.backend.idna_encode)
            kept[_LOOKED_UP.get(name.lower(), name)] = text
        return kept

    def _envelope(self, each: _Copy, body: bytes | None) -> Envelope:
        key = each.extras.idempotency_key
        own_id = str(uuid.uuid5(_NAMESPACE, key) if key else uuid.uuid4())
        lines, message_id = self._lines(each.extras, own_id)
        content = lines + self._written(each.message, body)
        if len(content) > MAX_SIZE:
            raise LettermintInvalidMessage(
                f"the message has {len(content)} octets, Lettermint takes {MAX_SIZE} "
                "(25 MB): send large files as links"
            )
        mail_from = cast("Mailbox", self.sender).address
        if self.mail_from is not None:
            mail_from = self.mail_from
        mailboxes = _distinct(
            [*each.to, *self.recipients["cc"], *self.recipients["bcc"]]
        )
        recipients = tuple(mailbox.address for mailbox in mailboxes)
        head = content[: content.index(b"\r\n\r\n")]
        return Envelope(
            mail_from=mail_from,
            recipients=recipients,
            content=content,
            message_id=message_id,
            idempotency_key=key
            or (own_id if self.backend.config.idempotency else None),
            # Nothing but local parts is raw in a header.
            smtputf8=not (
                head.isascii() and all(map(str.isascii, (mail_from, *recipients)))
            ),
            tenant=self.backend.config.endpoint.tenant,
        )

    def _written(self, message: EmailMessage, body: bytes | None) -> bytes:
        idna = self.backend.idna_encode
        if body is not None:
            return mime.header(message, idna) + body
        try:
            return mime.render(message, idna)
        except LettermintInvalidMessage:
            raise
        except Exception as error:
            # Users' classes and parts raise anything.
            raise LettermintInvalidMessage(
                f"the message cannot be rendered: {error} ({type(error).__name__}); check "
                "its subject, headers, addresses and attachments"
            ) from error

    def _lines(self, extras: Extras, own_id: str) -> tuple[bytes, str]:
        """Return our header lines, and the message id that they carry."""
        lines = render(extras)
        correlation_key = self.backend.correlation_key
        if correlation_key is None:
            return lines, own_id
        # An id that the caller gave as metadata is carried already.
        if given := extras.metadata.get(correlation_key):
            return lines, given
        return lines + metadata_line(correlation_key, own_id), own_id


def _extract_shared(
    headers: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object]]:
    """Divide headers that are not one message's own."""
    layer, others = extract_extras(headers)
    if "signed_tenant" in layer:
        raise LettermintInvalidMessage(
            f"header {TENANT}: it is freeze() that writes it, for one message as a whole; "
            "set the tenant in the message's attribute, or as the option `tenant`"
        )
    return layer, others


def _distinct(mailboxes: Iterable[Mailbox]) -> list[Mailbox]:
    """Leave out addresses that are named twice."""
    found: dict[str, Mailbox] = {}
    for each in mailboxes:
        found.setdefault(each.key, each)
    return list(found.values())
