"""Write messages of Django's own classes: header, body, alternatives, attachments."""

from __future__ import annotations

import copy
import functools
import mimetypes
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.charset import Charset
from email.message import Message
from email.utils import format_datetime, make_msgid
from socket import gethostname
from typing import Any

from django.conf import settings
from django.core.mail import (
    EmailAlternative,
    EmailAttachment,
    EmailMessage,
    EmailMultiAlternatives,
)
from django.core.mail.utils import DNS_NAME
from django.utils.functional import Promise
from django.utils.timezone import get_current_timezone

from django_lettermint import extras
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import invalid_value, short_repr

from . import bodies, fields, foreign
from .addresses import IdnaEncode, Mailbox, kept, parse, parse_one
from .bodies import OCTET_STREAM, Part, TextEncoding

#: Headers that Django looks up under exactly these names.
_LOOKED_UP = {"From", "To", "Cc", "Reply-To"}
_BY_DJANGO = " where a class with its own message() calls Django's"
#: The methods that build a message, in any version of Django.
_BUILDERS = {"message"} | {
    name
    for each in (EmailMessage, EmailMultiAlternatives)
    for name, value in vars(each).items()
    if callable(value) and name.startswith("_") and not name.startswith("__")
}


def is_stock(message: EmailMessage) -> bool:
    """Return whether only Django's own code builds the message."""
    kind: Any = type(message)  # to mypy, classes are not hashable
    return _is_stock_class(kind) and _BUILDERS.isdisjoint(vars(message))


@functools.lru_cache(maxsize=256)
def _is_stock_class(kind: type[EmailMessage]) -> bool:
    djangos = EmailMessage.__module__
    others = (vars(each) for each in kind.__mro__ if each.__module__ != djangos)
    return all(map(_BUILDERS.isdisjoint, others))


def render(message: EmailMessage, idna: IdnaEncode) -> Part:
    """Write a message; call its own `message()` if its class has one.

    Raises LettermintInvalidMessage for what cannot be sent correctly.
    """
    headers = {
        name: extras.header_text(name, value)
        for name, value in message.extra_headers.items()
    }
    if not is_stock(message):
        return foreign.render(_checked(message, headers, idna), idna)
    lists = {
        "From": [parse_one("from_email", message.from_email, idna)],
        "To": parse("to", message.to, idna),
        "Cc": parse("cc", message.cc, idna),
        "Reply-To": parse("reply_to", message.reply_to, idna),
    }
    subject = extras.single_line("subject", message.subject or "")
    names = ("body", "alternatives", "attachments")
    content = {name: getattr(message, name, None) for name in names}
    part = body(message, content, idna)
    return Part(header(subject, lists, headers, idna) + part.head, part.body)


def _checked(
    message: EmailMessage, headers: Mapping[str, str], idna: IdnaEncode
) -> EmailMessage:
    """Return a copy for the class's own `message()`, checked as Django does not.

    What Django changes in any version is written so that it stays, or refused.
    """
    message = copy.copy(message)
    is_name = not isinstance(message.encoding, Charset)
    if is_name and _encoding(message).transfer_encoding:
        rule = f"its line ends would not be kept{_BY_DJANGO}; use UTF-8"
        raise invalid_value("encoding", message.encoding, rule)
    sender = parse_one("from_email", message.from_email, idna)
    [message.from_email] = kept("from_email", [sender])
    for name in ("to", "cc", "reply_to"):
        mailboxes = parse(name, getattr(message, name), idna)
        setattr(message, name, kept(name, mailboxes))
    message.extra_headers = {}
    for name, text in headers.items():
        fields.write(name, text, idna)  # Django may encode what must not be
        key = name.title() if name.title() in _LOOKED_UP else name
        message.extra_headers[key] = fields.as_kept(name, text, idna)
    subject = extras.single_line("subject", message.subject or "")
    message.subject = fields.as_kept("Subject", subject, idna)
    if alternatives := getattr(message, "alternatives", ()):
        checked = [EmailAlternative(*_alternative(each)) for each in alternatives]
        message.alternatives = checked  # type: ignore[attr-defined] # of subclasses
    message.attachments = [_attachment(each) for each in message.attachments]
    for each in message.attachments:
        if isinstance(each, EmailAttachment) and "=?" in (each.filename or ""):
            rule = f"what looks like an encoded word would be decoded{_BY_DJANGO}"
            raise invalid_value("attachment's name", each.filename, rule)
    return message


def header(
    subject: str,
    lists: Mapping[str, Sequence[Mailbox]],
    headers: Mapping[str, str],
    idna: IdnaEncode,
) -> bytes:
    """Write the header, but for the fields of the body; `headers` win over `lists`."""
    own = {name.lower(): (name, value) for name, value in headers.items()}
    if len(own) < len(headers):
        twice = min(headers.keys() - {name for name, _ in own.values()})
        rule = "it is also given in another letter case; give one"
        raise invalid_value(f"header {short_repr(twice)}", headers[twice], rule)
    written = [fields.free_text("Subject", subject)]
    for name, mailboxes in lists.items():
        if given := own.pop(name.lower(), None):
            written.append(fields.write(name, given[1], idna))
        elif mailboxes:
            written.append(fields.addresses(name, mailboxes))
    if "date" not in own:
        local = settings.EMAIL_USE_LOCALTIME
        now = datetime.now(get_current_timezone() if local else UTC)
        written.append(_date(now.replace(microsecond=0), now.utcoffset()))
    if "message-id" not in own:
        domain = _domain(lists["From"][0])
        written.append(f"Message-ID: {make_msgid(domain=domain)}\r\n".encode())
    written += [fields.write(name, value, idna) for name, value in own.values()]
    return b"".join(written)


@functools.lru_cache(maxsize=8)
def _date(now: datetime, _offset: object) -> bytes:
    """Write the date; the mails of a second share the work.

    The offset is part of the key: equal times of two zones are written differently.
    """
    return f"Date: {format_datetime(now)}\r\n".encode()


def _domain(sender: Mailbox) -> str:
    """Return the sender's domain, or Django's DNS_NAME if it was set."""
    # If any code has read it, it holds the host's name, which is no domain.
    found = str(next(iter(vars(DNS_NAME).values()), ""))
    host, dot, _ = found.partition(".")
    if dot and host != gethostname().partition(".")[0]:
        return found
    return sender.address.rpartition("@")[2]


def body(message: EmailMessage, content: Mapping[str, Any], idna: IdnaEncode) -> Part:
    """Write the body, and the fields that describe it.

    `content` has its body, alternatives and attachments; the message has the rest.
    """
    encoding = _encoding(message)
    text, alternatives = content.get("body") or "", content.get("alternatives") or ()
    attachments = content.get("attachments") or ()
    parts: list[Part] = []
    if text or not (alternatives or attachments):
        if type(text) is not str:  # lazy objects claim to be one
            text = _content("body", text, "text/plain")
        if isinstance(text, bytes):
            text = text.decode(encoding.codec, "surrogateescape")
        kind = bodies.content_type("content_subtype", f"text/{message.content_subtype}")
        parts = [bodies.text("body", text, kind, encoding)]
    if alternatives:
        for each, value in map(_alternative, alternatives):
            parts.append(_leaf("alternative", each, value, encoding))
        parts = [_multipart(message, "alternative", parts)]
    if attachments:
        parts += [_attached(each, encoding, idna) for each in attachments]
        parts = [_multipart(message, "mixed", parts)]
    return bodies.as_message(parts[0])


def _encoding(message: EmailMessage) -> TextEncoding:
    given: object = message.encoding or settings.DEFAULT_CHARSET
    if isinstance(given, Charset):
        return bodies.charset_encoding(given)
    return bodies.text_encoding(str(given))


def _multipart(message: EmailMessage, name: str, parts: Iterable[Part]) -> Part:
    """Put parts together, under another subtype if the message says so."""
    field = f"{name}_subtype"
    kind = bodies.content_type(field, f"multipart/{getattr(message, field, name)}")
    # Nineteen random digits need no search through the parts.
    boundary = f"{'=' * 15}{random.randrange(10**19):019d}=="  # noqa: S311 - no secret
    head = fields.parameters("Content-Type", kind.value, {"boundary": boundary})
    return bodies.joined(head, boundary, parts)


def _alternative(each: object) -> tuple[str | bytes, str]:
    """Return content and MIME type of an alternative body, checked."""
    if not isinstance(each, tuple | list) or len(each) != 2:
        raise invalid_value("alternative", each, "give (content, MIME type)")
    value = _type("alternative", each[1])
    content = _text(_content("alternative", each[0], value), value)
    if value.lower().startswith("text/") and isinstance(content, bytes):
        raise invalid_value("alternative", content, "give it as text, or as UTF-8")
    return content, value


def _attachment(each: object) -> Message | EmailAttachment:
    """Return an attachment as Django takes it, checked, its MIME type guessed."""
    if isinstance(each, Message):
        return each
    if not isinstance(each, tuple | list) or len(each) not in {2, 3}:
        rule = "give a MIME part or (name, content, type)"
        raise invalid_value("attachment", each, rule)
    given, content, value = (*each, None)[:3]
    name = extras.single_line("attachment's name", "" if given is None else given)
    is_mail = isinstance(content, Message | EmailMessage)
    if not value:
        guessed = mimetypes.guess_type(name)[0] if name else None
        value = "message/rfc822" if is_mail else guessed or OCTET_STREAM
    value = _type("attachment", value)
    if not is_mail or not value.lower().startswith("message/"):
        content = _content(_label(name), content, value)
    return EmailAttachment(name, content, value)


def _attached(each: object, encoding: TextEncoding, idna: IdnaEncode) -> Part:
    """Write an attachment."""
    checked = _attachment(each)
    if isinstance(checked, Message):
        return foreign.part(checked, idna)
    name, content, value = checked
    field = _label(name)
    if isinstance(content, Message | EmailMessage):
        try:
            if isinstance(content, EmailMessage):
                content = render(content, idna).octets
            else:
                content = foreign.flatten(content, idna)
        except Exception as error:  # a message's own code can raise anything
            raise LettermintInvalidMessage(f"{field}: {error}") from error
    part = _leaf(field, content, value, encoding)
    return Part(part.head + bodies.disposition(name), part.body)


def _leaf(field: str, content: str | bytes, value: str, encoding: TextEncoding) -> Part:
    """Write text as text, mail as mail, and anything else as octets."""
    kind, content = bodies.content_type(field, value), _text(content, value)
    if isinstance(content, str):
        return bodies.text(field, content, kind, encoding)
    if kind.main == "message":
        # It may be signed, and is never encoded (RFC 2046 5.2.1): only line ends change.
        mail = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if bodies.is_sendable(mail):
            bits = "7bit" if mail.isascii() else "8bit"
            return Part(bodies.head(kind.value, bits), mail)
    is_file = kind.main in {"message", "text"}
    return bodies.octets(OCTET_STREAM if is_file else kind.value, content)


def _label(name: str | None) -> str:
    return f"attachment {short_repr(name)}" if name else "attachment"


def _type(field: str, value: object) -> str:
    """Return a MIME type, checked; one file has no composite type (RFC 2045 6.4)."""
    kind = bodies.content_type(f"{field}'s type", str(value))
    return OCTET_STREAM if kind.main == "multipart" else str(value)


def _content(field: str, content: object, value: str) -> str | bytes:
    """Return content, checked; text of a type that is not text as UTF-8."""
    if isinstance(content, str | Promise):
        text = str(extras.plain_str(content))
        if value.lower().startswith("text/"):
            return text
        try:
            return text.encode()
        except ValueError as error:
            raise invalid_value(field, content, "it has lone surrogates") from error
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    rule = "give text or bytes; of a file, pass its .read()"
    raise invalid_value(field, content, rule)


def _text(content: str | bytes, value: str) -> str | bytes:
    """Decode octets of a text type if they can be decoded."""
    kind = bodies.content_type("text", value)
    if kind.main == "text" and isinstance(content, bytes):
        with suppress(ValueError):
            return content.decode(bodies.text_encoding(kind.charset or "utf-8").codec)
    return content
