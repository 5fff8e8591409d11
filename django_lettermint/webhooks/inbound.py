"""Lettermint's webhook events about received mail, as Anymail's inbound events.

The content was written by strangers. It must never make the webhook fail: Lettermint
would deliver the event again for hours, and then drop the mail.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from email.utils import format_datetime, quote
from typing import TYPE_CHECKING, Any

from anymail.signals import AnymailInboundEvent, EventType

from .events import WebhookEvent, items, mapping, moment, text
from .received import ADDRESS_FIELDS, LENIENT, ReceivedMessage

if TYPE_CHECKING:
    from anymail.inbound import AnymailInboundMessage

# RFC 5322 section 3.6.8, with a limit on the length.
_HEADER_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]{1,255}")
# Line ends for any of Python's parsers, and characters that no header may hold.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def _words(bounds: str) -> re.Pattern[str]:
    # Possessive quantifiers, and matches that begin at a word, take linear time.
    word = rf"[^{bounds}\x80-\U0010ffff]*+[^\x00-\x7f][^{bounds}]*+"
    return re.compile(rf"(?<![^{bounds}]){word}(?: ++{word})*+", re.ASCII)


# Runs of words that are not ASCII. In addresses, punctuation ends a word. In a text it
# does not, since the email package is slow to read many short words.
_IN_TEXT = _words(r"\s")
_IN_ADDRESSES = _words(r'\s"<>(),;:@')
_MEDIA_TYPE = re.compile(r"(?!multipart/)[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_CHARSET = re.compile(
    r';\s*charset\s*=\s*"?([\w.:+-]{1,64})"?\s*(?:;|$)', re.ASCII | re.IGNORECASE
)
_CONTENT_ID = re.compile(r"<?([\x21\x23-\x3b\x3d\x3f-\x7e]{1,255})>?")
# They describe the structure of the original mail, not of the message built here.
_STRUCTURE = frozenset(
    {"mime-version", "content-type", "content-transfer-encoding", "content-disposition"}
)


def inbound_event(event: WebhookEvent) -> AnymailInboundEvent:
    """Return Anymail's event for a received mail.

    Raises ValueError if an attachment is not base64.
    """
    data = event.data
    body = mapping(data.get("body"))
    attachments = [mapping(each) for each in items(data.get("attachments"))]
    message = ReceivedMessage.construct(
        raw_headers="".join(f"{name}: {value}\n" for name, value in _headers(data)),
        text=text(body.get("text")),
        html=text(body.get("html")),
        # A route that delivers attachments as links sends `url`, not `content`.
        attachments=[_attachment(each) for each in attachments if each.get("content")],
    )
    for part in message.walk():
        part.policy = LENIENT
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
    # As raw lines: the email package parses a value when it is read. Now, an error of
    # its parser would lose the whole event.
    seen = set(_STRUCTURE)
    for header in map(mapping, items(data.get("headers"))):
        name, value = text(header.get("name")) or "", text(header.get("value")) or ""
        if _HEADER_NAME.fullmatch(name) and name.lower() not in _STRUCTURE:
            seen.add(name.lower())
            yield name, _encoded(name, _line(value))
    fields = {
        "From": _address(data.get("from")),
        "To": ", ".join(filter(None, map(_address, items(data.get("to"))))),
        "Cc": ", ".join(filter(None, map(_address, items(data.get("cc"))))),
        "Reply-To": text(data.get("reply_to")),
        "Subject": text(data.get("subject")),
        "Date": _date(data.get("date")),
    }
    for name, field in fields.items():
        if field and name.lower() not in seen:
            yield name, _encoded(name, _line(field))


def _line(value: str) -> str:
    return _CONTROLS.sub(" ", value).strip()


def _encoded(name: str, value: str) -> str:
    # Python 3.11's email package reads raw text, but cannot write it.
    words = _IN_ADDRESSES if name.lower() in ADDRESS_FIELDS else _IN_TEXT
    return words.sub(_encoded_word, value)


def _encoded_word(words: re.Match[str]) -> str:
    # RFC 2047, but of any length: email.header needs quadratic time to make short ones.
    return f"=?utf-8?b?{b64encode(words[0].encode()).decode()}?="


def _address(value: object) -> str:
    email, name = (text(mapping(value).get(key)) for key in ("email", "name"))
    return f'"{quote(name)}" <{email}>' if name and email else email or ""


def _date(value: object) -> str | None:
    try:
        return format_datetime(moment(value))
    except ValueError:
        return text(value)


def _attachment(data: Mapping[str, Any]) -> AnymailInboundMessage:
    content_id = _CONTENT_ID.fullmatch(text(data.get("content_id")) or "")
    try:
        content = b64decode(data["content"])
    except (TypeError, ValueError):
        raise ValueError("attachment_invalid") from None
    return ReceivedMessage.construct_attachment(  # type: ignore[no-any-return]
        content_type=_content_type(text(data.get("content_type")) or "", content),
        content=content,
        filename=_line(text(data.get("filename")) or "") or None,
        content_id=content_id and content_id[1],
    )


def _content_type(value: str, content: bytes) -> str:
    media_type = value.partition(";")[0].strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type):
        return "application/octet-stream"
    if media_type.startswith("message/") and not _decodes(content, "utf-8", "strict"):
        # Anymail would fail to parse it as text.
        return "application/octet-stream"
    charset = _CHARSET.search(value)
    # With a charset that Python does not know, reading the attachment would fail.
    if charset and _decodes(b"-", charset[1], "replace"):
        return f'{media_type}; charset="{charset[1]}"'
    return media_type


def _decodes(content: bytes, charset: str, errors: str) -> bool:
    try:
        content.decode(charset, errors)
    except (LookupError, UnicodeError):
        return False
    return True
