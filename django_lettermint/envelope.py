"""A rendered message: the same bytes for every attempt."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from .exceptions import LettermintInvalidMessage
from .extras import CONTROL, IDEMPOTENCY_KEY, Extras, tenant_name
from .mime import Part, seven_bit, with_crlf

#: Octets; Lettermint's documented limit for the whole message, read as MiB.
MAX_SIZE = 25 * 1024 * 1024
#: Recipients of one transaction; Lettermint's documented limit.
MAX_RECIPIENTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Addresses and content of one message, picklable and JSON-able, without secrets."""

    mail_from: str
    recipients: tuple[str, ...]
    #: The fields, without Idempotency-Key and without the empty line behind them.
    header: bytes
    #: What follows that line; the copies of a message share it. Dots are not stuffed.
    body: bytes
    #: Our id for the message; webhooks bring it back as `event.message_id`.
    message_id: str
    idempotency_key: str | None = None
    #: An address needs RFC 6531.
    smtputf8: bool = False
    #: The name of the tenant with whose token it is sent.
    tenant: str | None = None

    @property
    def content(self) -> bytes:
        """Return the message without the Idempotency-Key line."""
        return b"\r\n".join([self.header, self.body])

    @property
    def data(self) -> bytes:
        """Return what goes between DATA and the final dot, dots not stuffed."""
        lines = [self.header, self.body]
        if self.idempotency_key is not None:
            lines[0] = (
                f"{IDEMPOTENCY_KEY}: {self.idempotency_key}\r\n".encode() + lines[0]
            )
        return b"\r\n".join(lines)

    @property
    def size(self) -> int:
        """Return the octets of `data`."""
        key = self.idempotency_key
        line = 0 if key is None else len(f"{IDEMPOTENCY_KEY}: {key}\r\n")
        return line + len(self.header) + len("\r\n") + len(self.body)

    @property
    def is_ascii(self) -> bool:
        """Return whether it needs no 8BITMIME."""
        return self.header.isascii() and self.body.isascii()

    def seven_bit(self) -> Envelope:
        """Return the envelope with its bodies encoded for a relay without 8BITMIME."""
        header, body = Part.parse(seven_bit(self.content))
        envelope = replace(self, header=header, body=body)
        if not envelope.is_ascii:
            raise LettermintInvalidMessage(
                "a header has raw 8-bit characters, which the relay does not take: "
                "encode it as RFC 2047 says"
            )
        return envelope

    def part(self, number: int, recipients: Sequence[str]) -> Envelope:
        """Return the envelope for another transaction with some of the recipients.

        Number 1 is the first one or its repeat and keeps the key; any other has a key of
        its own, under which the relay cannot take it for the first.
        """
        key = self.idempotency_key
        if key is not None and number > 1:
            key = derived_key(key, *sorted(recipients))
        return replace(self, recipients=tuple(recipients), idempotency_key=key)

    def parts(self) -> list[Envelope]:
        """Divide the recipients into transactions of at most MAX_RECIPIENTS."""
        if len(self.recipients) <= MAX_RECIPIENTS:
            return [self]
        starts = range(0, len(self.recipients), MAX_RECIPIENTS)
        return [
            self.part(number, self.recipients[start : start + MAX_RECIPIENTS])
            for number, start in enumerate(starts, 1)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, for queues."""
        form = {
            "version": 1,
            "mail_from": self.mail_from,
            "recipients": list(self.recipients),
            "content": base64.b64encode(self.content).decode("ascii"),
            "message_id": self.message_id,
            "idempotency_key": self.idempotency_key,
            "smtputf8": self.smtputf8,
        }
        # Older releases ignore tenants and would use another token: they must refuse it.
        return {**form, "version": 2, "tenant": self.tenant} if self.tenant else form

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Self:
        """Read the form that `to_json()` made; raise ValueError for any other."""
        if form.get("version") != (2 if "tenant" in form else 1):
            raise ValueError(
                f"an envelope of version {form.get('version')!r}: this release of "
                "django-lettermint-smtp reads version 1, and 2 with a tenant"
            )
        try:
            content = base64.b64decode(form["content"], validate=True)
            header, body = Part.parse(content)
            envelope = cls(
                mail_from=form["mail_from"],
                recipients=tuple(form["recipients"]),
                header=header,
                body=body,
                message_id=form["message_id"],
                idempotency_key=form["idempotency_key"],
                smtputf8=form["smtputf8"],
                tenant=tenant_name(form["tenant"]) if "tenant" in form else None,
            )
            Extras(idempotency_key=envelope.idempotency_key)
            if envelope.to_json() == dict(form) and envelope._is_sound():
                return envelope
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an envelope: {error!r}") from error
        raise ValueError("not an envelope: it was changed after to_json()")

    def _is_sound(self) -> bool:
        """Return whether no part of it could be read as another SMTP command."""
        addresses = (self.mail_from, *self.recipients)
        content = self.content
        return with_crlf(content) == content and not any(
            CONTROL.search(each) or "<" in each or ">" in each for each in addresses
        )


def derived_key(key: str, *words: str) -> str:
    """Return the idempotency key of a further transaction of a message.

    It depends on the first one's key and on what sets the transaction apart: recipients,
    or the copy that it carries. No count could tell them apart in two processes.
    """
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]
    derived = f"{key}/{digest}"
    if len(derived) > 255:
        derived = hashlib.sha256(derived.encode()).hexdigest()
    return derived
