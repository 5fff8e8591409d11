"""Leaves: text and octets, in the transfer encoding that carries them."""

from __future__ import annotations

import binascii
import functools
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from email import charset as email_charset
from email.charset import Charset
from itertools import chain
from struct import Struct
from typing import NamedTuple

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import MAX_LINE, short_repr

from .fields import parameters

#: RFC 2045 section 5.1: type/subtype; parameters may follow.
_MIME_TYPE = re.compile(
    r"([!#-'*+.0-9A-Z^_`a-z{|}~-]+)/([!#-'*+.0-9A-Z^_`a-z{|}~-]+)((?: *;[ -~]*)?)"
)
_PARAMETER = re.compile(r""";(?:[^;"]|"(?:[^"\\]|\\.)*")+""")
_BLANK_TOO_MANY = re.compile(rb"^(.{74,75})(=20|=09)$", re.MULTILINE)
#: Characters of a base64 line (RFC 2045 section 6.8).
_BASE64_LINE = 76
_BASE64_LINES = Struct(f"{_BASE64_LINE}s" * 256)


class Part(NamedTuple):
    """A MIME entity: its own header fields, and its body as it stands on the wire."""

    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoding:
    """How the text of a message becomes octets."""

    #: The charset's name for readers, and for Python.
    charset: str
    codec: str
    #: quoted-printable or base64, if that is asked for; else what the octets need.
    transfer_encoding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentType:
    """A parsed MIME type; that of text without its parameter `charset`."""

    given: str
    main: str
    value: str
    charset: str = ""


def text_encoding(given: str | Charset) -> TextEncoding:
    """Read what a message's `encoding` says."""
    if isinstance(given, Charset):
        transfer_encodings = {
            email_charset.QP: "quoted-printable",
            email_charset.BASE64: "base64",
        }
        name = given.get_output_charset() or "utf-8"
        wanted = transfer_encodings.get(given.body_encoding, "")
        return _encoding(name, given.output_codec or name, wanted)
    return _named_encoding(str(given))


def _encoding(charset: str, codec: str, wanted: str = "") -> TextEncoding:
    try:
        # The line ends of UTF-16 and EBCDIC are not those of SMTP.
        wide = "\r\n".encode(codec)[-2:] != b"\r\n"
    except (LookupError, ValueError) as error:
        raise LettermintInvalidMessage(
            f"encoding: {short_repr(charset)} is refused: Python has no such charset"
        ) from error
    return TextEncoding(
        charset=charset, codec=codec, transfer_encoding="base64" if wide else wanted
    )


@functools.lru_cache(maxsize=64)
def _named_encoding(name: str) -> TextEncoding:
    # Python's aliases are not readers'; email knows the names for mail.
    charset = str(Charset(name).input_charset) if name.isascii() else name
    return _encoding("utf-8" if charset == "utf8" else charset, name)


@functools.lru_cache(maxsize=256)
def content_type(field: str, value: str) -> ContentType:
    """Parse a MIME type; raise LettermintInvalidMessage naming the field."""
    found = _MIME_TYPE.fullmatch(value)
    if not found:
        raise LettermintInvalidMessage(
            f"{field}: {short_repr(value)} is refused: write type/subtype (RFC 2045)"
        )
    main = found[1].lower()
    if main != "text":
        return ContentType(given=value, main=main, value=value)
    charset = ""
    others: list[str] = []
    for parameter in _PARAMETER.findall(found[3]):
        name, _, given = parameter.partition("=")
        if name.strip("; ").lower() == "charset":
            charset = given.strip('" ')
        else:
            others.append(parameter.strip("; "))
    stripped = "; ".join([f"{found[1]}/{found[2]}", *others])
    return ContentType(given=value, main=main, value=stripped, charset=charset)


def text(field: str, content: str, kind: ContentType, encoding: TextEncoding) -> Part:
    """Write text; raise LettermintInvalidMessage naming the field if it does not fit."""
    if kind.charset:
        encoding = _named_encoding(kind.charset)
    try:
        if encoding.transfer_encoding == "base64":
            content = re.sub("\r\n|\r|\n", "\r\n", content)
            body, needed = base64(content.encode(encoding.codec)), "base64"
        else:
            octets = content.encode(encoding.codec)
            body, needed = carried(octets, quoted=bool(encoding.transfer_encoding))
    except ValueError as error:
        raise LettermintInvalidMessage(
            f"{field}: it cannot be written in {encoding.charset} ({error}); use "
            "UTF-8, and text without lone surrogates"
        ) from error
    return Part(head(kind.value, needed, encoding.charset), body)


def carried(
    octets: bytes, *, quoted: bool = False, seven_bit: bool = False
) -> tuple[bytes, str]:
    """Return text as it stands on the wire, and its transfer encoding.

    CR, LF and CRLF are line ends (RFC 5321 section 2.3.8); one is not added.
    """
    lines = octets.splitlines()
    body = b"\r\n".join(lines)
    if octets[-1:] in (b"\n", b"\r"):
        body += b"\r\n"
    plain = body.isascii()
    fits = max(map(len, lines), default=0) <= MAX_LINE and b"\0" not in body
    if fits and not quoted and (plain or not seven_bit):
        return body, "7bit" if plain else "8bit"
    # Its soft line breaks are CRLF only if there is a hard one, and a blank that ends a
    # full line makes it too long.
    encoded = binascii.b2a_qp(body.replace(b"\r\n", b"\n"), istext=True)
    encoded = _BLANK_TOO_MANY.sub(rb"\1=\n\2", encoded)
    return encoded.replace(b"\n", b"\r\n"), "quoted-printable"


@functools.lru_cache(maxsize=256)
def head(value: str, transfer_encoding: str, charset: str = "") -> bytes:
    """Write the fields that say what a body is."""
    return parameters(
        "Content-Type", value, {"charset": charset} if charset else {}
    ) + (f"Content-Transfer-Encoding: {transfer_encoding}\r\n".encode())


def octets(value: str, data: bytes) -> Part:
    """Write octets of any type but text."""
    return Part(head(value, "base64"), base64(data))


def attached_mail(data: bytes) -> bytes | None:
    """Return mail as it stands on the wire, or None if its octets cannot travel.

    Nothing but its line ends is changed: it may be signed. RFC 2046 section 5.2.1 forbids
    to encode it.
    """
    content = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return content if travels(content) else None


def new_boundary() -> str:
    """Draw a boundary: nineteen random digits need no search through the parts."""
    return f"{'=' * 15}{random.randrange(10**19):019d}=="  # noqa: S311


def joined(head: bytes, boundary: str, parts: Iterable[Part]) -> Part:
    """Put parts together under the head of their multipart."""
    between = f"--{boundary}\r\n".encode()
    pieces: list[bytes] = []
    for part in parts:
        pieces += [between, part.head, b"\r\n", part.body, b"\r\n"]
    body = b"".join([*pieces, f"--{boundary}--\r\n".encode()])
    if not body.isascii():  # RFC 2045 section 6.4: it names what its parts need
        head += b"Content-Transfer-Encoding: 8bit\r\n"
    return Part(head, body)


def base64(data: bytes) -> bytes:
    """Encode in lines of 76 characters, without a line end behind the last."""
    encoded = binascii.b2a_base64(data, newline=False)
    end = len(encoded) // _BASE64_LINES.size * _BASE64_LINES.size
    bulk = chain.from_iterable(_BASE64_LINES.iter_unpack(memoryview(encoded)[:end]))
    starts = range(end, len(encoded), _BASE64_LINE)
    rest = [encoded[start : start + _BASE64_LINE] for start in starts]
    return b"\r\n".join([*bulk, *rest])


def travels(content: bytes, *, seven_bit: bool = False) -> bool:
    """Return whether content can go as it is: CRLF, short lines, no NUL, 7 bit if need be."""
    ends = content.count(b"\r\n")
    if b"\0" in content or content.count(b"\n") != ends or content.count(b"\r") != ends:
        return False
    if seven_bit and not content.isascii():
        return False
    start = 0
    while start + MAX_LINE + 2 < len(content):
        end = content.rfind(b"\n", start, start + MAX_LINE + 2)
        if end < 0:
            return False
        start = end + 1
    return True


def with_crlf(content: bytes) -> bytes:
    """Make every CR, LF and CRLF a CRLF, and end with one (RFC 5321 section 2.3.8).

    A lone CR or LF could end the message early at one server and not at the next (SMTP
    smuggling).
    """
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        content = content.replace(b"\n", b"\r\n")
    return content if content.endswith(b"\r\n") else content + b"\r\n"
