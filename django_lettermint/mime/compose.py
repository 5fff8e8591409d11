"""A message of Django's own classes, written whole: header, alternatives, attachments."""

from __future__ import annotations

import functools
import mimetypes
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.message import Message
from email.utils import make_msgid
from socket import gethostname
from typing import Any, TypeAlias

from django.conf import settings
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.utils import DNS_NAME
from django.utils.functional import Promise
from django.utils.timezone import get_current_timezone

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import invalid_value, short_repr

from . import bodies, fields, foreign
from .addresses import IdnaEncode, Mailbox, parse, parse_one
from .bodies import ContentType, Part, TextEncoding

_OCTET_STREAM = "application/octet-stream"
#: One attachment: name, content, MIME type.
Attachment: TypeAlias = tuple[str, str | bytes | Message | EmailMessage, str]
_GIVE_READ = "give text or bytes; of a file, pass its .read()"

#: The methods that build a message, in any version of Django.
_BUILDERS = {
    name
    for each in (EmailMessage, EmailMultiAlternatives)
    for name, value in vars(each).items()
    if callable(value) and name.startswith("_") and not name.startswith("__")
} | {"message"}


def is_stock(message: EmailMessage) -> bool:
    """Return whether nobody but Django builds a message."""
    kind: Any = type(message)  # to mypy, classes are not hashable
    return _is_stock_class(kind) and _BUILDERS.isdisjoint(vars(message))


@functools.lru_cache(maxsize=256)
def _is_stock_class(kind: type[EmailMessage]) -> bool:
    others = (
        each for each in kind.__mro__ if each.__module__ != EmailMessage.__module__
    )
    return all(_BUILDERS.isdisjoint(vars(each)) for each in others)


def render(message: EmailMessage, idna: IdnaEncode) -> bytes:
    """Write a message; what another class builds is left to it.

    Raises LettermintInvalidMessage for what cannot be sent correctly.
    """
    if not is_stock(message):
        return foreign.render(message, idna)
    return header(message, idna) + body(message, idna)


def header(message: EmailMessage, idna: IdnaEncode) -> bytes:
    """Write the header, but for the fields of the body."""
    own = {name.lower(): (name, value) for name, value in message.extra_headers.items()}
    subject = fields.single_line("subject", message.subject or "")
    sender = parse_one("from_email", message.from_email, idna)
    written = [fields.free_text("Subject", subject)]
    lists: dict[str, Sequence[Mailbox]] = {
        "From": [sender],
        "To": parse("to", message.to, idna),
        "Cc": parse("cc", message.cc, idna),
        "Reply-To": parse("reply_to", message.reply_to, idna),
    }
    for name, mailboxes in lists.items():
        if given := own.pop(name.lower(), None):
            text = fields.header_text(name, given[1])
            written.append(fields.write(name, text, idna))
        elif mailboxes:
            written.append(fields.addresses(name, mailboxes))
    if "date" not in own:
        local = settings.EMAIL_USE_LOCALTIME
        now = datetime.now(get_current_timezone() if local else UTC)
        written.append(f"Date: {fields.date(now)}\r\n".encode())
    if "message-id" not in own:
        message_id = make_msgid(domain=_id_domain(sender))
        written.append(f"Message-ID: {message_id}\r\n".encode())
    for name, value in own.values():
        text = fields.header_text(name, value)
        written.append(fields.write(name, text, idna))
    return b"".join(written)


def _id_domain(sender: Mailbox) -> str:
    """Return the sender's domain, or Django's DNS_NAME if somebody has set it."""
    # Once asked, it keeps the name of the host, which says nothing in a container.
    [found] = vars(DNS_NAME).values() or [""]
    host = gethostname().partition(".")[0]
    if "." in found and found.partition(".")[0] != host:
        return str(found)
    return sender.address.rpartition("@")[2]


def body(message: EmailMessage, idna: IdnaEncode) -> bytes:
    """Write the fields of the body, and the body."""
    part = _body(message, idna)
    end = b"" if part.body.endswith(b"\r\n") else b"\r\n"
    return b"".join([b"MIME-Version: 1.0\r\n", part.head, b"\r\n", part.body, end])


def _body(message: EmailMessage, idna: IdnaEncode) -> Part:
    encoding = bodies.text_encoding(message.encoding or settings.DEFAULT_CHARSET)
    alternatives = getattr(message, "alternatives", None) or ()
    parts: list[Part] = []
    text = _text(message.body, encoding)
    if text or not (alternatives or message.attachments):
        kind = bodies.content_type("content_subtype", f"text/{message.content_subtype}")
        parts.append(bodies.text("body", text, kind, encoding))
    parts += [_alternative(each, encoding) for each in alternatives]
    if alternatives:
        subtype = getattr(message, "alternative_subtype", "alternative")
        parts = [_multipart("alternative_subtype", subtype, parts)]
    if message.attachments:
        parts += [_attachment(each, encoding, idna) for each in message.attachments]
        subtype = getattr(message, "mixed_subtype", "mixed")
        parts = [_multipart("mixed_subtype", subtype, parts)]
    return parts[0]


def _multipart(field: str, subtype: str, parts: Iterable[Part]) -> Part:
    """Put parts together; `field` is the attribute that says how."""
    kind = bodies.content_type(field, f"multipart/{subtype}")
    boundary = bodies.new_boundary()
    head = fields.parameters("Content-Type", kind.value, {"boundary": boundary})
    return bodies.joined(head, boundary, parts)


def _text(content: object, encoding: TextEncoding) -> str:
    """Return the text of a body; bytes are decoded as Django does it."""
    if content is None:
        return ""
    if isinstance(content, bytes):
        return content.decode(encoding.codec, "surrogateescape")
    if not isinstance(content, str | Promise):
        raise invalid_value("body", content, _GIVE_READ)
    return str(content)


def check_alternative(each: object) -> tuple[str | bytes, str]:
    """Return content and MIME type of an alternative body, checked."""
    if not isinstance(each, tuple | list) or len(each) != 2:
        raise invalid_value("alternative", each, "give (content, MIME type)")
    kind = bodies.content_type("alternative's type", str(each[1]))
    return _content("alternative", each[0]), kind.given


def _alternative(each: object, encoding: TextEncoding) -> Part:
    content, value = check_alternative(each)
    kind = bodies.content_type("alternative's type", value)
    if kind.main != "text":
        return bodies.octets(kind.value, _octets("alternative", content))
    if isinstance(content, bytes):
        try:
            content = content.decode(kind.charset or "utf-8")
        except (LookupError, ValueError) as error:
            rule = f"give it as text ({error})"
            raise invalid_value("alternative", content, rule) from error
    return bodies.text("alternative", content, kind, encoding)


def check_attachment(each: object) -> Message | Attachment:
    """Return an attachment as Django takes it, checked, its MIME type guessed."""
    if isinstance(each, Message):
        return each
    if not isinstance(each, tuple | list) or not 1 < len(each) < 4:
        rule = "give a MIME part or (name, content, type)"
        raise invalid_value("attachment", each, rule)
    given, content, *rest = each
    name = fields.single_line("attachment's name", "" if given is None else given)
    label = _label(name)
    if isinstance(content, Message | EmailMessage):
        value = str(rest[0]) if rest and rest[0] else "message/rfc822"
        if not value.startswith("message/"):
            raise invalid_value(f"{label}'s type", value, "a message is message/rfc822")
        return name, content, value
    guessed = mimetypes.guess_type(name)[0] if name else None
    value = str(rest[0]) if rest and rest[0] else guessed or _OCTET_STREAM
    bodies.content_type("attachment's type", value)
    return name, _content(label, content), value


def _attachment(each: object, encoding: TextEncoding, idna: IdnaEncode) -> Part:
    checked = check_attachment(each)
    if isinstance(checked, Message):
        return foreign.part(checked)
    name, content, value = checked
    kind, label = bodies.content_type("attachment's type", value), _label(name)
    parameters = {"filename": name} if name else {}
    disposition = fields.parameters("Content-Disposition", "attachment", parameters)
    if isinstance(content, Message | EmailMessage):
        content = _flattened(label, content, idna)
    if kind.main == "message" and (
        mail := bodies.attached_mail(_octets(label, content))
    ):
        part = Part(bodies.head(kind.value, "7bit" if mail.isascii() else "8bit"), mail)
    elif kind.main == "text" and (text := _decoded(content, kind)) is not None:
        part = bodies.text(label, text, kind, encoding)
    else:
        # RFC 2045 section 6.4: composite types are never encoded; a file may be.
        composite = kind.main in {"message", "multipart", "text"}
        value = _OCTET_STREAM if composite else kind.value
        part = bodies.octets(value, _octets(label, content))
    return Part(part.head + disposition, part.body)


def _label(name: str) -> str:
    return f"attachment {short_repr(name)}" if name else "attachment"


def _content(field: str, content: object) -> str | bytes:
    if isinstance(content, str | Promise):
        return str(content)
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise invalid_value(field, content, _GIVE_READ)


def _octets(field: str, content: str | bytes) -> bytes:
    try:
        return content.encode() if isinstance(content, str) else content
    except ValueError as error:
        raise invalid_value(field, content, "it has lone surrogates") from error


def _decoded(content: str | bytes, kind: ContentType) -> str | None:
    """Return the text of an attachment, or None if it is none."""
    if isinstance(content, str):
        return content
    try:
        return content.decode(kind.charset or "utf-8")
    except (LookupError, ValueError):
        return None


def _flattened(field: str, content: Message | EmailMessage, idna: IdnaEncode) -> bytes:
    try:
        if isinstance(content, EmailMessage):
            return render(content, idna)
        return foreign.flatten(content)
    except Exception as error:
        raise LettermintInvalidMessage(f"{field}: {error}") from error
