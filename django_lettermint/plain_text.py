"""Messages of nothing but text, which most are, written at once.

The bytes are those that Django 6.x writes by way of a MIME object. Whatever a message
has beyond text is left to Django.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.headerregistry import AddressHeader
from email.utils import make_msgid
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.mail.utils import DNS_NAME
from django.utils.timezone import get_current_timezone

from . import mime
from .extras import FIELD_NAME
from .header_policy import ADDRESS_LISTS, date_text, plain

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

#: Headers that Django writes or refuses whatever the caller says.
_DJANGOS = {
    "bcc",
    "content-transfer-encoding",
    "content-type",
    "mime-version",
    "subject",
}


def write(message: EmailMessage) -> list[mime.Piece] | None:
    """Return headers and body as Django would, or None if there is more to it."""
    names = {name.lower() for name in message.extra_headers}
    body = message.body
    if (
        message.attachments
        or getattr(message, "alternatives", None)
        or not isinstance(body, str)
        or (message.encoding or settings.DEFAULT_CHARSET) != "utf-8"
        or message.content_subtype not in {"plain", "html"}
        or len(names) < len(message.extra_headers)
        or not names.isdisjoint(_DJANGOS)
        or (lines := mime.text_lines(body)) is None
    ):
        return None
    head = [
        f'Content-Type: text/{message.content_subtype}; charset="utf-8"\r\n'
        f"Content-Transfer-Encoding: {'7bit' if lines.isascii() else '8bit'}\r\n"
        "MIME-Version: 1.0\r\n".encode()
    ]
    for name, value in _headers(message, names):
        line = _header(name, value)
        if line is None:
            return None
        head.append(line)
    return [b"".join([*head, b"\r\n"]), memoryview(lines)]


def _headers(message: EmailMessage, names: set[str]) -> Iterator[tuple[str, object]]:
    """Yield the headers in Django's order; `names` are the caller's, in lower case."""
    own = message.extra_headers
    yield "Subject", str(message.subject)
    yield "From", str(own.get("From", message.from_email))
    lists = {"To": message.to, "Cc": message.cc, "Reply-To": message.reply_to}
    for name, values in lists.items():
        if name in own:
            yield name, own[name]
        elif values:
            yield name, ", ".join(map(str, values))
    if "date" not in names:
        local = settings.EMAIL_USE_LOCALTIME
        yield "Date", datetime.now(get_current_timezone() if local else UTC)
    if "message-id" not in names:
        yield "Message-ID", make_msgid(domain=str(DNS_NAME))
    for name, value in own.items():
        if name.lower() not in ADDRESS_LISTS:
            yield name, value


def _header(name: str, value: object) -> bytes | None:
    """Return a folded header, or None if it takes more than that."""
    if not FIELD_NAME.fullmatch(name):
        return None
    if isinstance(value, datetime):
        text: str | None = date_text(value)
    elif isinstance(value, str):
        text = plain(name, value)
    else:
        return None
    if text:
        return f"{name}: {text}\r\n".encode("ascii")
    stored = mime.FAST.header_store_parse(name, value)[1]
    # Django writes domains of other scripts as IDNA.
    if isinstance(stored, AddressHeader) and not all(
        address.domain.isascii() for address in stored.addresses
    ):
        return None
    # Encoded words that hold line breaks are for others to refuse.
    if len(stored.splitlines()) > 1:
        return None
    return mime.FAST.fold_binary(name, stored)
