"""One copy of a message, complete, and the envelope that is made of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import headers
from .envelope import MAX_SIZE, Envelope
from .exceptions import LettermintInvalidMessage
from .rendering import render

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .addresses import Mailbox
    from .extras import Extras

#: Under which an idempotency key gives the same message id in every process.
_NAMESPACE = uuid.UUID("6c5f0e0c-9f0c-5d59-9d67-2f1f3a3b8a56")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a message is to its recipients: all of them, or with merge_* one."""

    #: Django's message, without what `extras` holds.
    message: EmailMessage
    extras: Extras
    sender: Mailbox
    recipients: Sequence[Mailbox]
    #: Who else is named in a header.
    named: Iterable[Mailbox]

    def envelope(self, *, correlation_key: str | None, idempotency: bool) -> Envelope:
        """Render it, with our header lines in front."""
        key = self.extras.idempotency_key
        own_id = str(uuid.uuid5(_NAMESPACE, key) if key else uuid.uuid4())
        lines, message_id = self._lines(correlation_key, own_id)
        mailboxes = (self.sender, *self.recipients, *self.named)
        smtputf8 = any(each.smtputf8 for each in mailboxes)
        content = lines + render(self.message, utf8=smtputf8)
        if len(content) > MAX_SIZE:
            raise LettermintInvalidMessage(
                f"the message has {len(content)} octets, Lettermint takes {MAX_SIZE} "
                "(25 MB): send large files as links"
            )
        return Envelope(
            mail_from=self.sender.wire,
            # An address named twice is sent once.
            recipients=tuple(dict.fromkeys(each.wire for each in self.recipients)),
            content=content,
            message_id=message_id,
            idempotency_key=key or (own_id if idempotency else None),
            smtputf8=smtputf8,
        )

    def _lines(self, correlation_key: str | None, own_id: str) -> tuple[bytes, str]:
        """Return our header lines, and the message id that they carry."""
        lines = headers.render(self.extras)
        if correlation_key is None:
            return lines, own_id
        # An id that the caller gave as metadata is carried already.
        if given := self.extras.metadata.get(correlation_key):
            return lines, given
        return lines + headers.metadata_line(correlation_key, own_id), own_id
