"""What Lettermint's webhook payloads mean in Anymail's terms: received mail.

Everything here was written by strangers: whatever stands in a mail, it must not make
the webhook fail, or one odd mail would be delivered again for hours and then be lost.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from email.header import Header
from email.utils import quote
from typing import Any

from anymail.inbound import AnymailInboundMessage
from anymail.signals import AnymailInboundEvent, EventType

from .webhook_events import WebhookEvent, items, mapping, text

# RFC 5322 section 3.6.8, and a bound: longer names are no headers.
_HEADER_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]{1,255}")
# What ends a line for any of Python's parsers, and what no header may hold.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Words outside of ASCII, as many as stand together; addresses' punctuation stays out.
_WORD = r'[^\s"<>(),;:@]*[^\x00-\x7f][^\s"<>(),;:@]*'
_WORDS = re.compile(f"{_WORD}(?: +{_WORD})*", re.ASCII)
_MEDIA_TYPE = re.compile(r"(?!multipart/)[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_CONTENT_ID = re.compile(r"<?([\x21\x23-\x3b\x3d\x3f-\x7e]{1,255})>?")
# They describe the structure of the original, which is not what gets built here.
_STRUCTURE = frozenset(
    {"mime-version", "content-type", "content-transfer-encoding", "content-disposition"}
)


def inbound_event(event: WebhookEvent) -> AnymailInboundEvent:
    """Return Anymail's event for a received mail; ValueError if an attachment is broken."""
    data = event.data
    body = mapping(data.get("body"))
    attachments = [mapping(each) for each in items(data.get("attachments"))]
    message = AnymailInboundMessage.construct(
        raw_headers="".join(f"{name}: {value}\n" for name, value in _headers(data)),
        text=text(body.get("text")),
        html=text(body.get("html")),
        # A route that delivers attachments as links sends `url`, not `content`.
        attachments=[_attachment(each) for each in attachments if each.get("content")],
    )
    _annotate(message, data)
    return AnymailInboundEvent(
        event_type=EventType.INBOUND,
        timestamp=event.timestamp,
        event_id=event.id,
        esp_event=event.payload,
        message=message,
    )


def _annotate(message: AnymailInboundMessage, data: Mapping[str, Any]) -> None:
    envelope = mapping(data.get("envelope"))
    sender = text(envelope.get("mail_from")) or text(envelope.get("from"))
    message.envelope_sender = sender
    message.envelope_recipient = text(data.get("recipient"))
    spam, score = data.get("is_spam"), data.get("spam_score")
    message.spam_detected = spam if isinstance(spam, bool) else None
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    message.spam_score = score if is_number else None


def _headers(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # As raw lines: the email package then parses a value when it is asked for it, not
    # now, where one of its parser's errors would cost the whole event.
    seen = set(_STRUCTURE)
    for header in map(mapping, items(data.get("headers"))):
        name, value = text(header.get("name")) or "", text(header.get("value")) or ""
        if _HEADER_NAME.fullmatch(name) and name.lower() not in _STRUCTURE:
            seen.add(name.lower())
            yield name, _encoded(_line(value))
    fields = {
        "From": _address(data.get("from")),
        "To": ", ".join(filter(None, map(_address, items(data.get("to"))))),
        "Cc": ", ".join(filter(None, map(_address, items(data.get("cc"))))),
        "Reply-To": text(data.get("reply_to")),
        "Subject": text(data.get("subject")),
    }
    for name, field in fields.items():
        if field and name.lower() not in seen:
            yield name, _encoded(_line(field))


def _line(value: str) -> str:
    return _CONTROLS.sub(" ", value).strip()


def _encoded(value: str) -> str:
    # RFC 2047: Python 3.11's email package reads raw text, but cannot write it again.
    return _WORDS.sub(
        lambda words: Header(words[0], "utf-8").encode(maxlinelen=0), value
    )


def _address(value: object) -> str:
    email, name = (text(mapping(value).get(key)) for key in ("email", "name"))
    return f'"{quote(name)}" <{email}>' if name and email else email or ""


def _attachment(data: Mapping[str, Any]) -> AnymailInboundMessage:
    content_type = (text(data.get("content_type")) or "").partition(";")[0].lower()
    if not _MEDIA_TYPE.fullmatch(content_type):
        content_type = "application/octet-stream"
    content_id = _CONTENT_ID.fullmatch(text(data.get("content_id")) or "")
    try:
        content = b64decode(data["content"])
    except (TypeError, ValueError):
        raise ValueError("attachment_invalid") from None
    if content_type.startswith("message/") and not _is_utf8(content):
        # Anymail parses it as text, and would fail.
        content_type = "application/octet-stream"
    return AnymailInboundMessage.construct_attachment(  # type: ignore[no-any-return]
        content_type=content_type,
        content=content,
        filename=_line(text(data.get("filename")) or "") or None,
        content_id=content_id and content_id[1],
    )


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
