"""Messages to look at, and what of them is on the wire."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_lettermint.exceptions import LettermintInvalidMessage
from tests.preparing import envelope

from .readers import file_name

OCTET_STREAM = "application/octet-stream"
BOUNCE = (
    b"Content-Type: multipart/report; boundary=r\n\n--r\n"
    b"Content-Type: message/delivery-status\n\nReporting-MTA: dns; mail.example\n\n"
    b"Final-Recipient: rfc822; x@mail.example\nno colon in this line\n--r--\n"
)


def mail(**change: Any) -> EmailMultiAlternatives:
    """Make a message of nothing but text, or what `change` makes of it."""
    attributes: dict[str, Any] = {
        name: change.pop(name)
        for name in ("encoding", "content_subtype", "mixed_subtype")
        if name in change
    }
    keywords = {
        "subject": "Hello",
        "body": "Text\n",
        "from_email": "desk@shop.example",
        "to": ["you@mail.example"],
    }
    message = EmailMultiAlternatives(**keywords | change)
    vars(message).update(attributes)
    return message


def with_file(*attachment: Any, **change: Any) -> EmailMultiAlternatives:
    """Attach as Django's attach() does."""
    message = mail(**change)
    message.attach(*attachment)
    return message


def with_entry(entry: Any, **change: Any) -> EmailMultiAlternatives:
    """Attach as those do who append to the list themselves."""
    message = mail(**change)
    message.attachments.append(entry)
    return message


def written(message: EmailMessage) -> bytes:
    return envelope(message, correlation_key=None).content


def field(message: EmailMessage, name: str) -> str:
    """Return the lines of a header as they are, without its name."""
    [found] = fields(message, name)
    return found


def fields(message: EmailMessage, name: str) -> list[str]:
    head = written(message).partition(b"\r\n\r\n")[0].decode() + "\r\n"
    return re.findall(rf"(?im)^{name}: ?((?:[^\r]|\r\n[ \t])*)\r\n", head)


def unfolded(message: EmailMessage, name: str) -> str:
    return field(message, name).replace("\r\n", "")


def refusal(message: EmailMessage, **options: Any) -> str:
    with pytest.raises(LettermintInvalidMessage) as caught:
        envelope(message, **options)
    return str(caught.value)


def attached(content: bytes) -> Message:
    """Return the last part of a message with attachments, as Python parses it."""
    parts: Any = message_from_bytes(content).get_payload()
    found = parts[-1]
    assert isinstance(found, Message)
    return found


def found_in(content: bytes) -> tuple[str, str | None, object]:
    """Return type, name and decoded octets of the last part."""
    part = attached(content)
    return part.get_content_type(), file_name(part), part.get_payload(decode=True)


def octets_of(content: bytes) -> bytes:
    """Return the body of the last part, a mail, as it stands on the wire."""
    boundary = str(message_from_bytes(content).get_boundary()).encode()
    *_, part, _ = content.split(b"\r\n--" + boundary)
    head, _, body = part.partition(b"\r\n\r\n")
    assert b"Content-Type: message/rfc822\r\n" in head
    return body
