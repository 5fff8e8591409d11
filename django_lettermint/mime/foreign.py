"""What others have built: the result of an own `message()`, MIME objects, attached mail.

Parts are taken to pieces only as far as they cannot travel; what is signed or encrypted
is never touched.
"""

from __future__ import annotations

import copy
import re
from email import message_from_bytes
from email.generator import BytesGenerator
from email.header import decode_header, make_header
from email.headerregistry import BaseHeader
from email.message import Message
from email.parser import BytesHeaderParser
from email.policy import Compat32, EmailPolicy, Policy
from io import BytesIO
from typing import TYPE_CHECKING, Any

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import (
    FIELD_NAME,
    MAX_LINE,
    decode,
    invalid_value,
    is_lettermint_header,
    short_repr,
)

from . import bodies, fields
from .addresses import IdnaEncode
from .bodies import (
    Part,
    attached_mail,
    base64,
    carried,
    joined,
    new_boundary,
    travels,
    with_crlf,
)

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

_OCTET_STREAM = "application/octet-stream"
_ENCODING = b"content-transfer-encoding"
_ENCODINGS = {"quoted-printable", "base64", "x-uuencode", "uuencode", "uue", "x-uue"}
#: Multiparts over whose octets others have computed something (RFC 1847).
_SEALED = {"signed", "encrypted"}
#: A line end that no blank follows: what comes behind it is another header.
_HEADER_END = re.compile(r"\r\n(?![ \t])|\r(?![\n \t])|(?<!\r)\n(?![ \t])")
#: One field of a header with the lines that continue it.
_FIELD = re.compile(rb"([!-9;-~]+):[^\n]*\n(?:[ \t][^\n]*\n)*")
#: What Django 5.2 makes of a local part that is not ASCII.
_ENCODED_LOCAL_PART = re.compile(r"=\?utf-8\?[bq]\?[^?]*\?=(?=@)")


class _AsSet(Compat32):
    """Writes fields as they were parsed or set; folds only what has no octets yet."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        if isinstance(value, BaseHeader):
            return value.fold(policy=_MODERN).encode("ascii", "surrogateescape")
        if not isinstance(value, str):  # email's Header
            return super().fold_binary(name, value)
        lines = re.split("\r\n|\r|\n", value)
        try:
            text = "\r\n".join([f"{name}: {lines[0]}", *lines[1:], ""])
            return text.encode("ascii", "surrogateescape")
        except UnicodeEncodeError:
            return super().fold_binary(name, value)


_AS_SET = _AsSet(linesep="\r\n")
_MODERN = EmailPolicy(linesep="\r\n", max_line_length=MAX_LINE)


def render(message: EmailMessage, idna: IdnaEncode) -> bytes:
    """Write what the message's own class builds, its header by our rules."""
    built = message.message()
    if not isinstance(built, Message):
        raise LettermintInvalidMessage(
            f"message(): {short_repr(built)} is refused: it must return a MIME message"
        )
    _check_headers(built)
    head: list[bytes] = []
    body = copy.copy(built)  # del makes a new list of its fields
    for name, value in built.items():
        if not name.lower().startswith(("content-", "mime-version")):
            head.append(_field(name, value, idna))
            del body[name]
    del body["MIME-Version"]
    made = part(body)
    end = b"" if made.body.endswith(b"\r\n") else b"\r\n"
    return b"".join(
        [*head, b"MIME-Version: 1.0\r\n", made.head, b"\r\n", made.body, end]
    )


def _field(name: str, value: Any, idna: IdnaEncode) -> bytes:
    """Write a header that a class has set; what it has encoded is decoded first."""
    lower = name.lower()
    if lower in {"bcc", "resent-bcc"}:
        return b""
    if is_lettermint_header(name):
        raise LettermintInvalidMessage(
            f"header {short_repr(name)} of the class's own message() is refused: give it "
            "in `headers`, or as the message's attribute"
        )
    text = re.sub("\r\n|\r|\n", "", str(value))
    if lower in fields.ADDRESS_FIELDS:
        text = _ENCODED_LOCAL_PART.sub(lambda found: decode(found[0]), text)
    elif lower in fields.FREE_TEXT and not isinstance(value, BaseHeader):
        text = str(make_header(decode_header(text)))
    if lower == "subject":
        return fields.free_text(name, fields.single_line("subject", text))
    return fields.write(name, fields.header_text(name, text), idna)


def part(mime: Message) -> Part:
    """Write a MIME object; raise LettermintInvalidMessage for what cannot travel."""
    _check_headers(mime)
    main, payload = mime.get_content_maintype(), mime.get_payload()
    if main == "multipart":
        if mime.get_content_subtype() in _SEALED or not isinstance(payload, list):
            return _untouched(mime)
        if mime.get_boundary() is None:
            mime = copy.copy(mime)
            mime.set_boundary(new_boundary())
        head = _without(_head(mime), _ENCODING)
        return joined(head, str(mime.get_boundary()), map(part, payload))
    if main == "message":
        made = (
            split(flatten(mime))
            if mime.is_multipart()
            else Part(_head(mime), _octets(payload))
        )
        mail = attached_mail(made.body)
        return _as_file(*made) if mail is None else Part(made.head, mail)
    return _leaf(_head(mime), main, _octets(payload))


def flatten(mime: Message) -> bytes:
    """Write a MIME object as it was parsed or made, lines ending in CRLF."""
    for each in mime.walk():
        _check_headers(each)
    return _generated(mime, _AS_SET)


def _generated(mime: Message, policy: Policy[Any]) -> bytes:
    buffer = BytesIO()
    BytesGenerator(buffer, mangle_from_=False, policy=policy).flatten(mime)
    return buffer.getvalue()


def _untouched(mime: Message) -> Part:
    octets = _generated(mime, mime.policy.clone(linesep="\r\n"))
    if not travels(octets):
        raise _sealed(mime, f"it has a line over {MAX_LINE} octets or a NUL")
    return split(octets)


def _sealed(mime: Message, problem: str) -> LettermintInvalidMessage:
    return LettermintInvalidMessage(
        f"the part {mime.get_content_type()}: {problem}, and what is signed or encrypted "
        "cannot be encoded anew: encode its parts before (RFC 1847 section 2.1)"
    )


def _head(mime: Message) -> bytes:
    head = b"".join(
        _AS_SET.fold_binary(name, value) for name, value in mime.raw_items()
    )
    for found in _FIELD.finditer(head):
        if not travels(found[0]):
            raise LettermintInvalidMessage(
                f"header {short_repr(found[1].decode())} of a MIME part: a line of it is "
                f"over {MAX_LINE} octets or holds a NUL (RFC 5322 section 2.1.1)"
            )
    return head


def _octets(payload: object) -> bytes:
    if isinstance(payload, str):
        try:
            return payload.encode("ascii", "surrogateescape")
        except UnicodeEncodeError:
            return payload.encode()
    if isinstance(payload, bytes | bytearray | memoryview | None):
        return bytes(payload or b"")
    rule = "the payload of a MIME part is text or bytes, and a list for multipart"
    raise invalid_value("attachment", payload, rule)


def _leaf(head: bytes, main: str, octets: bytes, *, seven_bit: bool = False) -> Part:
    """Write octets under their head, encoded anew if they cannot travel as they are."""
    found = re.search(rb"(?im)^content-transfer-encoding:\s*([^\s;]+)", head)
    if found and found[1].decode("ascii", "replace").lower() in _ENCODINGS:
        body = with_crlf(octets).removesuffix(b"\r\n")
        if travels(body, seven_bit=True):
            return Part(head, body)
        decoded = message_from_bytes(head + b"\r\n" + octets).get_payload(decode=True)
        octets = decoded if isinstance(decoded, bytes) else octets
    if main == "text" and b"\0" not in octets:
        body, encoding = carried(octets, seven_bit=seven_bit)
    else:
        body, encoding = base64(octets), "base64"
    field = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    return Part(_without(head, _ENCODING) + field, body)


def _as_file(head: bytes, octets: bytes) -> Part:
    """Write attached mail that cannot travel as a file of the same name."""
    made = bodies.octets(_OCTET_STREAM, octets)
    kept = _without(head, _ENCODING, b"content-type")
    if b"content-disposition:" not in kept.lower():
        name = _parsed(head).get_filename()
        parameters = {"filename": name} if name else {}
        kept += fields.parameters("Content-Disposition", "attachment", parameters)
    return Part(kept + made.head, made.body)


def _without(head: bytes, *names: bytes) -> bytes:
    found = _FIELD.finditer(head)
    return b"".join(each[0] for each in found if each[1].lower() not in names)


def _parsed(head: bytes) -> Message:
    return BytesHeaderParser().parsebytes(head)


def _check_headers(mime: Message) -> None:
    """Look for what would end a header early: not every Python's generators do."""
    for name, value in mime.raw_items():
        if not FIELD_NAME.fullmatch(name) or _HEADER_END.search(str(value)):
            raise LettermintInvalidMessage(
                f"header {short_repr(name)}: {short_repr(value)} is refused: it has a "
                "line break that begins another header, or no proper name"
            )


def split(entity: bytes) -> Part:
    """Part an entity into its head and its body."""
    if entity.startswith(b"\r\n"):
        return Part(b"", entity[2:])
    head, _, body = entity.partition(b"\r\n\r\n")
    return Part(head + b"\r\n", body)


def seven_bit(content: bytes) -> bytes:
    """Encode what has 8 bits in a written message, for a relay without 8BITMIME."""
    made = _seven_bit(*split(content))
    return with_crlf(b"".join([made.head, b"\r\n", made.body]))


def _seven_bit(head: bytes, body: bytes) -> Part:
    if body.isascii():
        return Part(head, body)
    parsed = _parsed(head)
    main, boundary = parsed.get_content_maintype(), parsed.get_boundary()
    if main == "multipart":
        if parsed.get_content_subtype() in _SEALED or boundary is None:
            raise _sealed(
                parsed, "it has 8-bit characters, which the relay does not take"
            )
        line = (
            rb"(?:\A|\r\n)--"
            + re.escape(boundary).encode()
            + rb"(--)?[ \t]*(?=\r\n|\Z)"
        )
        pieces = re.split(line, body)
        ends = zip(pieces[1::2], pieces[2::2], strict=True)
        entities = [piece.removeprefix(b"\r\n") for end, piece in ends if not end]
        children = [_seven_bit(*split(each)) for each in entities]
        return joined(_without(head, _ENCODING), boundary, children)
    if main == "message":
        return _as_file(head, body)
    return _leaf(head, main, body, seven_bit=True)
