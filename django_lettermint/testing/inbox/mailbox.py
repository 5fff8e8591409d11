"""The mails that the inbox shows: the newest ones, in memory."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TypeAlias

from django_lettermint.testing.records import ReceivedMessage, Refusal

from .reading import read_parts, visible_text

Record: TypeAlias = ReceivedMessage | Refusal

#: Characters of a body that the search looks at.
_SEARCHED = 100_000
_PREVIEW = 140
_NO_SUBJECT = {
    "AUTH": "A login was refused",
    "MAIL": "A sender was refused",
    "RCPT": "A recipient was refused",
    "DATA": "(no subject)",
}


class Mail:
    """A message or a refusal, and what a list shows of it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        #: Whether its page has been opened.
        self.opened = False

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def refusal(self) -> str:
        """The reply with which the relay refused it; empty if it took the mail."""
        record = self.record
        if isinstance(record, ReceivedMessage):
            return ""
        reply = f"{record.code} {record.text}"
        return f"{record.address}: {reply}" if record.address else reply

    # Parsed when a page needs it: the relay's client waits while a record is added.

    @cached_property
    def subject(self) -> str:
        subject = str(self.record.headers.get("Subject", "")).strip()
        command = getattr(self.record, "command", "DATA")
        return subject or _NO_SUBJECT[command]

    @cached_property
    def sender(self) -> str:
        return str(self.record.headers.get("From", "")) or self.record.mail_from

    @cached_property
    def parties(self) -> str:
        """From whom to whom, as far as is known."""
        recipients = ", ".join(self.record.recipients)
        return " → ".join(filter(None, [self.sender, recipients]))

    @cached_property
    def attachments(self) -> int:
        return len(read_parts(self.record).attachments)

    @cached_property
    def preview(self) -> str:
        return " ".join(self._text[: 2 * _PREVIEW].split())[:_PREVIEW]

    @cached_property
    def _text(self) -> str:
        parts = read_parts(self.record)
        if parts.text:
            return parts.text.text[:_SEARCHED]
        return visible_text(parts.html.text[:_SEARCHED]) if parts.html else ""

    @cached_property
    def _words(self) -> str:
        record, headers = self.record, self.record.headers
        texts = [
            *(self.subject, self.sender, self.refusal, self._text),
            *(record.mail_from, *record.recipients),
            *(str(headers.get(name, "")) for name in ("To", "Cc", "Reply-To")),
        ]
        if isinstance(record, ReceivedMessage):
            texts += [
                record.route or "",
                record.tag or "",
                record.idempotency_key or "",
            ]
            texts += [f"{key} {value}" for key, value in record.metadata.items()]
        return "\n".join(texts).casefold()

    def matches(self, query: str) -> bool:
        """Return whether each word of `query` occurs in the mail, in any case."""
        return all(word in self._words for word in query.casefold().split())


class Mailbox:
    """The last `keep` mails, as long as they have no more than `max_octets` together."""

    def __init__(self, *, keep: int, max_octets: int) -> None:
        self._keep = keep
        self._max_octets = max_octets
        self._changed = threading.Condition()
        #: By id, the oldest first.
        self._mails: dict[str, Mail] = {}
        self._octets = 0
        # Pages that were opened before a restart notice that they are out of date.
        self._name = secrets.token_hex(4)
        self._changes = 0
        self._closed = False

    @property
    def version(self) -> str:
        """Differs after each change."""
        return f"{self._name}-{self._changes}"

    def add(self, record: Record) -> None:
        """Keep a record, and drop the oldest ones above the limits; quick."""
        with self._changed:
            if record.id in self._mails:
                return
            self._mails[record.id] = Mail(record)
            self._octets += len(record.content)
            while len(self._mails) > self._keep or (
                self._octets > self._max_octets and len(self._mails) > 1
            ):
                oldest = self._mails.pop(next(iter(self._mails)))
                self._octets -= len(oldest.record.content)
            self._notify()

    def opened(self, mail: Mail) -> None:
        """Note that the page of a mail has been opened."""
        with self._changed:
            if not mail.opened:
                mail.opened = True
                self._notify()

    def clear(self) -> None:
        """Drop all mails."""
        with self._changed:
            self._mails.clear()
            self._octets = 0
            self._notify()

    def get(self, mail_id: str) -> Mail | None:
        """Return the mail with this id, or None if it was dropped."""
        with self._changed:
            return self._mails.get(mail_id)

    def __iter__(self) -> Iterator[Mail]:
        """Iterate over the mails of this moment, the newest first."""
        with self._changed:
            return iter(list(reversed(self._mails.values())))

    def wait(self, version: str, timeout: float) -> str:
        """Return the version once it is another one; empty once the mailbox is closed.

        After `timeout` seconds the same version is returned.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self.version != version, timeout
            )
            return "" if self._closed else self.version

    def open(self) -> None:
        """Allow waiting again."""
        self._closed = False

    def close(self) -> None:
        """Wake all waiting threads; the mails stay."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _notify(self) -> None:
        self._changes += 1
        self._changed.notify_all()
