"""Leaves: text and octets, in the transfer encoding that carries them."""

from __future__ import annotations

import binascii
import codecs
import functools
import re
from collections.abc import Iterable
from email import charset
from email.message import Message
from itertools import chain
from struct import Struct
from typing import NamedTuple

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import MAX_LINE, invalid_value

from .fields import parameters

#: RFC 2045 section 5.1: type/subtype; parameters may follow.
_MIME_TYPE = re.compile(
    "[!#-'*+.0-9A-Z^_`a-z{|}~-]+/[!#-'*+.0-9A-Z^_`a-z{|}~-]+(?: *;[ -~]*)?"
)
OCTET_STREAM = "application/octet-stream"
#: A line that is too long because its last blank was encoded.
_BLANK_TOO_MANY = re.compile(rb"^(.{74,75})(=20|=09)$", re.MULTILINE)
#: Characters of a base64 line (RFC 2045 section 6.8).
_BASE64_LINE = 76
_BASE64_LINES = Struct(f"{_BASE64_LINE}s" * 256)


class Part(NamedTuple):
    """A MIME entity: its header fields, and its body as it is sent."""

    head: bytes
    body: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Part:
        """Divide an entity at the empty line behind its header."""
        if octets.startswith(b"\r\n"):
            return cls(b"", octets[2:])
        head, _, body = octets.partition(b"\r\n\r\n")
        return cls(head + b"\r\n", body)

    @property
    def octets(self) -> bytes:
        """Return header, empty line and body."""
        return b"\r\n".join(self)


#: Python ignores blanks and quotes in names, and from 3.15 on warns about some.
_CHARSET = re.compile(r"[\w.:()+-]+", re.ASCII)
_IBM = "037 273 424 437 500 775 850 852 855 857 860 861 862 863 864 865 866 869 1026"
#: Charset names of mail, by Python's. The table of `email` depends on Python's version.
_MAIL_NAMES = {
    **{f"cp{number}": f"ibm{number}" for number in _IBM.split()},
    **{f"iso8859-{number}": f"iso-8859-{number}" for number in range(1, 17)},
    **{f"cp125{number}": f"windows-125{number}" for number in range(9)},
    "ascii": "us-ascii",
    "cp949": "ks_c_5601-1987",
    "euc_jp": "euc-jp",
    "euc_kr": "euc-kr",
    "hz": "hz-gb-2312",
    "mac-roman": "macintosh",
    "utf-16-be": "utf-16be",
    "utf-16-le": "utf-16le",
    "utf-8": "utf-8",
}
#: Codecs of names for which Python 3.15 has another codec than older versions.
_CODECS = {"ks_c_5601-1987": "cp949"}
#: ISO-8859-8 with the direction of Hebrew (RFC 1556), which Python knows from 3.15 on.
_DIRECTED = re.compile("(?:cs)?iso[-_]?8859[-_]?8[-_]?[ie]", re.IGNORECASE)


class TextEncoding(NamedTuple):
    """How text becomes octets: the charset for readers and for Python."""

    charset: str
    codec: str
    #: quoted-printable or base64, if that is asked for; else what the octets need.
    transfer_encoding: str = ""


class ContentType(NamedTuple):
    """A MIME type; that of text without its parameter `charset`."""

    main: str
    value: str
    charset: str = ""


def charset_encoding(given: charset.Charset) -> TextEncoding:
    """Read the object that a message may have as its `encoding`."""
    name = given.get_output_charset() or "utf-8"
    wanted = {charset.QP: "quoted-printable", charset.BASE64: "base64"}
    codec = given.output_codec or name
    return _encoding("encoding", name, codec, wanted.get(given.body_encoding, ""))


@functools.lru_cache(maxsize=64)
def text_encoding(name: str, field: str = "encoding") -> TextEncoding:
    """Read the name of a charset; raise LettermintInvalidMessage if there is none."""
    codec = "iso-8859-8" if _DIRECTED.fullmatch(name) else name
    return _encoding(field, name.lower(), codec)


def _encoding(field: str, name: str, codec: str, wanted: str = "") -> TextEncoding:
    codec = _CODECS.get(codec.lower(), codec)
    try:
        if not (_CHARSET.fullmatch(name) and _CHARSET.fullmatch(codec)):
            raise LookupError(name)
        # The line ends of UTF-16 and EBCDIC are not those of SMTP.
        wide = "\r\n".encode(codec)[-2:] != b"\r\n"
    except (LookupError, ValueError) as error:
        rule = "Python has no such charset"
        raise invalid_value(field, codec, rule) from error
    return TextEncoding(_mail_name(name), codec, "base64" if wide else wanted)


def _mail_name(name: str) -> str:
    """Return the name of a charset in mail; keep one that Python does not know."""
    if _DIRECTED.fullmatch(name):
        return name
    try:
        known = codecs.lookup(_CODECS.get(name, name)).name
    except LookupError:
        return name
    return _MAIL_NAMES.get(known, name)


@functools.lru_cache(maxsize=256)
def content_type(field: str, value: str) -> ContentType:
    """Parse a MIME type; raise LettermintInvalidMessage naming the field."""
    if not _MIME_TYPE.fullmatch(value):
        raise invalid_value(field, value, "write type/subtype (RFC 2045)")
    parsed = Message()
    parsed["Content-Type"] = value = value.rstrip("; ")
    main = parsed.get_content_maintype()
    name = parsed.get_content_charset("") if main == "text" else ""
    if not name:
        return ContentType(main, value)
    parsed.del_param("charset")
    return ContentType(main, parsed["Content-Type"], name)


def text(field: str, content: str, kind: ContentType, encoding: TextEncoding) -> Part:
    """Write text; raise LettermintInvalidMessage naming the field if it does not fit."""
    if kind.charset:
        encoding = text_encoding(kind.charset, f"charset of {field}")
    name, codec, wanted = encoding
    try:
        if wanted == "base64":
            content = re.sub("\r\n|\r|\n", "\r\n", content)
        written = content.encode(codec)
        # Python writes a yen sign in Shift JIS as a backslash.
        if name != "utf-8" and written.decode(codec) != content:
            raise ValueError("characters would be read as others")
        if wanted == "base64":
            body = base64(written)
        else:
            body, wanted = transfer_encoded(written, quoted=bool(wanted))
    except ValueError as error:
        raise LettermintInvalidMessage(
            f"{field}: it cannot be written in {name} ({error}); use UTF-8, and text "
            "without lone surrogates"
        ) from error
    return Part(head(kind.value, wanted, name), body)


def transfer_encoded(
    octets: bytes, *, quoted: bool = False, seven_bit: bool = False
) -> tuple[bytes, str]:
    """Return text as it is sent, and its transfer encoding.

    Every line end becomes CRLF; one is not added.
    """
    body = crlf(octets)
    if not quoted and is_sendable(body, seven_bit=seven_bit):
        return body, "7bit" if body.isascii() else "8bit"
    encoded = binascii.b2a_qp(body.replace(b"\r\n", b"\n"), istext=True)
    encoded = _BLANK_TOO_MANY.sub(rb"\1=\n\2", encoded)
    return encoded.replace(b"\n", b"\r\n"), "quoted-printable"


@functools.lru_cache(maxsize=256)
def head(value: str, transfer_encoding: str, name: str = "") -> bytes:
    """Write Content-Type and Content-Transfer-Encoding."""
    kind = parameters("Content-Type", value, {"charset": name} if name else {})
    return kind + f"Content-Transfer-Encoding: {transfer_encoding}\r\n".encode()


def disposition(name: str | None) -> bytes:
    """Write Content-Disposition of a file."""
    given = {"filename": name} if name else {}
    return parameters("Content-Disposition", "attachment", given)


def octets(value: str, data: bytes) -> Part:
    """Write octets of any type but text."""
    return Part(head(value, "base64"), base64(data))


def base64(data: bytes) -> bytes:
    """Encode in lines of 76 characters, without a line end behind the last."""
    encoded = binascii.b2a_base64(data, newline=False)
    end = len(encoded) // _BASE64_LINES.size * _BASE64_LINES.size
    bulk = chain.from_iterable(_BASE64_LINES.iter_unpack(memoryview(encoded)[:end]))
    starts = range(end, len(encoded), _BASE64_LINE)
    rest = [encoded[start : start + _BASE64_LINE] for start in starts]
    return b"\r\n".join([*bulk, *rest])


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


def as_message(part: Part) -> Part:
    """Return the part that is a message's body: with MIME-Version, ended by CRLF."""
    head = b"MIME-Version: 1.0\r\n" + part.head
    return Part(head, part.body if part.body.endswith(b"\r\n") else part.body + b"\r\n")


def is_sendable(content: bytes, *, seven_bit: bool = False) -> bool:
    """Return whether content can be sent unencoded.

    It may have no lone CR or LF, no NUL and no line over MAX_LINE octets.
    """
    if (seven_bit and not content.isascii()) or b"\0" in content:
        return False
    if not _has_crlf_only(content):
        return False
    # Without a list of the lines, which would take more memory than the content.
    start, longest = 0, MAX_LINE + len(b"\r\n")
    while start + MAX_LINE < len(content) and start >= 0:
        start = content.rfind(b"\n", start, start + longest) + 1 or -1
    return start >= 0


def _has_crlf_only(content: bytes) -> bool:
    """Return whether content has no lone CR or LF."""
    pairs = content.count(b"\r\n")
    return content.count(b"\r") == content.count(b"\n") == pairs


def crlf(content: bytes) -> bytes:
    """Make every CR, LF and CRLF a CRLF (RFC 5321 section 2.3.8).

    A lone CR or LF could end the message early at one server and not at the next (SMTP
    smuggling).
    """
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")


def with_crlf(content: bytes) -> bytes:
    """Make every line end a CRLF, and end with one."""
    # Copies may be large.
    content = content if _has_crlf_only(content) else crlf(content)
    return content if content.endswith(b"\r\n") else content + b"\r\n"
