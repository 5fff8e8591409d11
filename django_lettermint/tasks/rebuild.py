"""Rebuild a message from its bytes, for receivers of signals in a worker."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterable, Iterator
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses
from typing import Any

from anymail.exceptions import AnymailInvalidAddress
from anymail.utils import EmailAddress

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import extract_extras
from django_lettermint.message import LettermintMessage

#: Headers that EmailMessage has attributes for, or writes itself.
_NOT_EXTRA = ("from", "to", "cc", "reply-to", "subject", "mime-version")


def message_from_bytes(content: bytes, recipients: Iterable[str]) -> LettermintMessage:
    """Return a message with the content of these bytes, without attachments.

    Addresses are bare. Recipients that no header names are in `bcc`.
    """
    parsed = email.message_from_bytes(content, policy=email.policy.compat32)
    extras, others = _split({name: _line(raw) for name, raw in parsed.raw_items()})
    to, cc, reply_to = (
        [address for _, address in getaddresses([others.get(name, "")]) if address]
        for name in ("To", "Cc", "Reply-To")
    )
    message = LettermintMessage(
        subject=_decoded(others.get("Subject", "")),
        body=_text(parsed, "plain") or "",
        from_email=_sender(others.get("From", "")),
        to=to,
        cc=cc,
        bcc=sorted({*recipients} - {*to, *cc}),
        reply_to=reply_to,
        headers={
            name: _decoded(value)
            for name, value in others.items()
            if not name.lower().startswith(("content-", *_NOT_EXTRA))
        },
        **extras,
    )
    if html := _text(parsed, "html"):
        message.attach_alternative(html, "text/html")
    return message


def _split(raw: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return extract_extras(raw)
    except LettermintInvalidMessage:
        # Written by a message class of the user's. The mail is sent, so the signal must
        # be sent as well.
        return {}, raw


def _line(raw: Any) -> str:
    """Unfold a header's value; its raw octets are UTF-8 if any (RFC 6532)."""
    text = str(raw).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    text = "".join(text.splitlines())
    return "".join(char if char.isprintable() else " " for char in text)


def _decoded(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


def _sender(text: str) -> str:
    """Decode the names, and quote those that need it, as in `from_email`."""
    try:
        return ", ".join(
            str(EmailAddress(_decoded(name), address))
            for name, address in getaddresses([text])
        )
    except AnymailInvalidAddress:
        return _decoded(text)


def _text(parsed: Message, subtype: str) -> str | None:
    """Return the first body of this subtype, with lines ending in LF."""
    for part in _leaves(parsed):
        if (
            part.get_content_type() == f"text/{subtype}"
            and part.get_content_disposition() != "attachment"
        ):
            octets = part.get_payload(decode=True)
            assert isinstance(octets, bytes)  # noqa: S101 - a leaf's payload, decoded
            try:
                text = octets.decode(part.get_content_charset("utf-8"), "replace")
            except (LookupError, ValueError):  # no such charset, or no text encoding
                text = octets.decode("utf-8", "replace")
            return text.replace("\r\n", "\n")
    return None


def _leaves(part: Message) -> Iterator[Message]:
    """Yield the parts that hold content, except those of attached messages."""
    if not part.is_multipart():
        yield part
    elif part.get_content_maintype() == "multipart":
        parts: Any = part.get_payload()
        for each in parts:
            yield from _leaves(each)
