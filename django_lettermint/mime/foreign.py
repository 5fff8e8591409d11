"""Write what other code has built: MIME objects, and results of a class's `message()`.

A part is encoded anew only if it cannot be sent as it is; a signed or encrypted part never.
"""

from __future__ import annotations

import copy
import re
from base64 import encodebytes
from email.generator import BytesGenerator
from email.header import Header, decode_header, make_header
from email.headerregistry import BaseHeader
from email.message import Message
from email.parser import BytesHeaderParser, BytesParser
from email.policy import Compat32, EmailPolicy, compat32
from email.utils import collapse_rfc2231_value
from io import BytesIO
from typing import TYPE_CHECKING, Any

from django_lettermint import extras
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import MAX_LINE, invalid_header, short_repr

from . import bodies, fields
from .bodies import Part

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from .addresses import IdnaEncode

_ENCODING, _TYPE = b"content-transfer-encoding", b"content-type"
_ENCODINGS = {"quoted-printable", "base64", "x-uuencode", "uuencode", "uue", "x-uue"}
#: Multiparts over whose octets others have computed something (RFC 1847).
_SEALED = {"multipart/signed", "multipart/encrypted"}
_STATUS = "message/delivery-status"
#: Fields with parameters, such as the name of a file (RFC 2231).
_WITH_PARAMETERS = {"content-type", "content-disposition"}
#: A line end that no blank follows: it would begin another header.
_HEADER_END = re.compile(r"\r\n(?![ \t])|\r(?![\n \t])|(?<!\r)\n(?![ \t])")
#: One field of a header with the lines that continue it.
_FIELD = re.compile(rb"([!-9;-~]+):[^\n]*\n(?:[ \t][^\n]*\n)*")
#: Octets of a parsed field that are not ASCII.
_RAW = re.compile("[\udc80-\udcff]")
#: Django 5.2 encodes a local part that is not ASCII like this.
_ENCODED_LOCAL_PART = re.compile(r"=\?[^? ]+\?[bq]\?[^? ]*\?=(?=@)")


class _AsSet(Compat32):
    """Writes fields as they were parsed or set; folds only what has no octets yet."""

    idna: IdnaEncode = str

    def fold_binary(self, name: str, value: Any) -> bytes:
        has_octets = isinstance(value, str) and not isinstance(value, BaseHeader)
        has_parameters = name.lower() in _WITH_PARAMETERS
        if has_octets and not re.search(r"[^\0-\x7f\udc80-\udcff]", value):
            written = re.sub("\r\n|\r|\n", "\r\n", f"{name}: {value}\n")
            long = max(map(len, written.split("\r\n"))) > MAX_LINE
            if not (long and has_parameters and value.isascii()):
                return written.encode("ascii", "surrogateescape")
        elif hasattr(value, "params"):
            modern = EmailPolicy(linesep="\r\n", max_line_length=MAX_LINE)
            folded: str = value.fold(policy=modern)
            return folded.encode("ascii", "surrogateescape")
        # Python would make encoded words of up to a whole line, or lose characters.
        try:
            text = _text(value)
        except UnicodeDecodeError:
            return super().fold_binary(name, value)  # as octets of no known charset
        if has_parameters and (made := _parameters(name, text)).isascii():
            return made
        if text.isascii() and name.lower() in fields.ADDRESS_FIELDS:
            return extras.verbatim(name, text, fields.WIDTH)
        return fields.write(name, text, self.idna)


def _parameters(name: str, text: str) -> bytes:
    """Write a field with parameters; RFC 2047 section 5 allows no encoded words there."""
    parsed = Message()
    parsed[name] = text
    pairs: Any = parsed.get_params(header=name)
    (value, _), *given = pairs
    texts = {key: collapse_rfc2231_value(each) for key, each in given}
    return fields.parameters(name, value, texts)


def render(message: EmailMessage, idna: IdnaEncode) -> Part:
    """Write the result of the class's `message()`, its header by our rules."""
    built = message.message()
    if not isinstance(built, Message):
        raise TypeError(f"message() returned {short_repr(built)}, not a MIME message")
    head: list[bytes] = []
    # `del` rebinds the copy's list of fields, and leaves the original's.
    body = copy.copy(built)
    _check_headers(built)
    given = _given(message)
    for name, raw in built.raw_items():
        if not name.lower().startswith("content-"):
            del body[name]
            if name.lower() not in {"bcc", "resent-bcc", "mime-version"}:
                # Other policies replace octets that are not UTF-8.
                policy = compat32 if _RAW.search(str(raw)) else built.policy
                value = policy.header_fetch_parse(name, raw)
                text = given.get(name.lower(), "")
                # Python changes some names, and cuts off some Message-IDs.
                if text and str(policy.header_store_parse(name, text)[1]) == value:
                    value = text
                head.append(_field(name, value, idna))
    made = bodies.as_message(part(body, idna))
    return Part(b"".join([*head, made.head]), made.body)


def _given(message: EmailMessage) -> dict[str, str]:
    """Return the headers that a message's class was given, by lower-case name."""
    lists = {
        "from": [message.from_email],
        "to": message.to,
        "cc": message.cc,
        "reply-to": message.reply_to,
    }
    given = {name: ", ".join(map(str, each)) for name, each in lists.items()}
    return given | {key.lower(): text for key, text in message.extra_headers.items()}


def _field(name: str, value: Any, idna: IdnaEncode) -> bytes:
    """Write a header that a class has set, decoding encoded words first."""
    if extras.is_lettermint_header(name):
        raise LettermintInvalidMessage(
            f"header {short_repr(name)} of the class's own message() is refused: give it "
            "in `headers`, or as the message's attribute"
        )
    try:
        text, lower = _text(value), name.lower()
    except UnicodeDecodeError as error:
        rule = "its octets are not UTF-8; give it as text"
        raise invalid_header(name, str(value), rule) from error
    if lower in fields.ADDRESS_FIELDS or lower == "list-id":
        if set(text).isdisjoint("@<"):  # Django 5.2 encodes fields it does not know
            text = extras.decode(text)
        text = _ENCODED_LOCAL_PART.sub(lambda found: extras.decode(found[0]), text)
    elif lower in fields.FREE_TEXT and not isinstance(value, BaseHeader):
        # Python decodes no words beside text that is not ASCII.
        is_raw = not text.isascii()
        text = extras.decode(text) if is_raw else str(make_header(decode_header(text)))
    if lower == "subject":
        return fields.free_text(name, extras.single_line("subject", text))
    return fields.write(name, extras.header_text(name, text), idna)


def _text(value: Any) -> str:
    """Return the text of a field, unfolded; raise UnicodeDecodeError if it has none."""
    text = str(value)
    if isinstance(value, Header) and "\ufffd" in text:
        # A parser gives raw octets this charset, and str() loses them.
        pieces = [
            (octets, "utf-8" if charset == "unknown-8bit" else charset)
            for octets, charset in decode_header(value)
        ]
        text = str(make_header(pieces))
    return re.sub("[\r\n]", "", text)


def part(mime: Message, idna: IdnaEncode) -> Part:
    """Write a MIME object; raise LettermintInvalidMessage for what cannot be sent."""
    return _fit(*Part.parse(flatten(_with_octets(mime), idna)))


def flatten(mime: Message, idna: IdnaEncode) -> bytes:
    """Write a MIME object as it was parsed or made, lines ending in CRLF."""
    _check_headers(mime)
    buffer = BytesIO()
    policy = _AsSet(linesep="\r\n", idna=idna)  # type: ignore[call-arg]
    BytesGenerator(buffer, mangle_from_=False, policy=policy).flatten(mime)
    # A multipart without a boundary is written as it is.
    return buffer.getvalue().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _check_headers(mime: Message) -> None:
    """Refuse fields that would inject another; only newer Pythons check for this."""
    rule = "it has a line break that begins another header, or no proper name"
    for each in mime.walk():
        for name, value in each.raw_items():
            if not extras.FIELD_NAME.fullmatch(name) or _HEADER_END.search(str(value)):
                raise invalid_header(name, value, rule)


def _with_octets(mime: Message) -> Message:
    """Return a copy that generators can write: octets encoded, text as text.

    Generators write str only, and translate line ends, which octets do not have.
    """
    if mime.get_content_type() in _SEALED:
        # Generators would turn a lone CR into a line end.
        if any(re.search("\r(?!\n)", str(each.get_payload())) for each in mime.walk()):
            raise _sealed(mime, seven_bit=False)
        return mime
    mime = _parsed_status(mime)
    main, made = mime.get_content_maintype(), copy.copy(mime)
    payload: Any = mime.get_payload()
    if isinstance(payload, list) and main in {"multipart", "message"}:
        if main == "multipart":
            made.set_payload([_with_octets(each) for each in payload])
        return made
    given = wanted = _transfer_encoding(mime)
    if given in _ENCODINGS and isinstance(payload, str):
        return made  # even with raw octets among what is encoded
    octets = _octets(mime, payload)
    if given not in _ENCODINGS:
        if main not in {"message", "multipart"} and not _is_plain_text(mime, octets):
            octets, wanted = encodebytes(octets), "base64"
        elif not octets.isascii():
            wanted = "8bit"
    made.set_payload(octets.decode("ascii", "surrogateescape"))
    if wanted != given:
        del made["Content-Transfer-Encoding"]
        made["Content-Transfer-Encoding"] = wanted
    return made


def _is_plain_text(mime: Message, octets: bytes) -> bool:
    """Return whether a leaf is text whose line ends are those of ASCII."""
    # In other charsets, a NUL is a sign of UTF-16 or the like.
    known = mime.get_content_charset() in {"us-ascii", "utf-8"}
    return mime.get_content_maintype() == "text" and (known or b"\0" not in octets)


def _parsed_status(mime: Message) -> Message:
    """Return a delivery status as the parser makes it: the generator accepts no text."""
    payload = mime.get_payload()
    if mime.get_content_type() != _STATUS or isinstance(payload, list):
        return mime
    head = f"Content-Type: {_STATUS}\n\n".encode()
    parsed = BytesParser().parsebytes(head + _octets(mime, payload))
    made = copy.copy(mime)
    made.set_payload(parsed.get_payload())
    del made["Content-Transfer-Encoding"]  # it is never encoded
    return made


def _octets(mime: Message, payload: Any) -> bytes:
    """Return the octets of a leaf's payload, as they stand there."""
    if not isinstance(payload, str | bytes | bytearray | memoryview | None):
        rule = "the payload of a MIME part is text or bytes, and a list for multipart"
        raise extras.invalid_value("attachment", payload, rule)
    if not isinstance(payload, str):
        return bytes(payload or b"")
    octets: Any = mime.get_payload(decode=True)
    if not payload.isascii() and octets == payload.encode("raw-unicode-escape"):
        # Python's guess about text beyond ASCII, of which it knows no charset.
        octets = payload.encode(mime.get_content_charset("utf-8"))
    return bytes(octets)


def _transfer_encoding(mime: Message) -> str:
    return str(mime.get("Content-Transfer-Encoding", "")).strip().lower()


def seven_bit(content: bytes) -> bytes:
    """Encode what has 8 bits in a written message, for a relay without 8BITMIME."""
    made = _fit(*Part.parse(content), seven_bit=True)
    return bodies.with_crlf(made.octets)


def _fit(head: bytes, body: bytes, *, seven_bit: bool = False) -> Part:
    """Encode the leaves of an entity that cannot be sent as they are."""
    for found in _FIELD.finditer(head):
        if not bodies.is_sendable(found[0]):
            name = found[1].decode()
            rule = f"a line has over {MAX_LINE} octets or a NUL (RFC 5322)"
            raise invalid_header(name, found[0], rule)
    if bodies.is_sendable(body, seven_bit=seven_bit):
        return Part(head, body)
    parsed = BytesHeaderParser().parsebytes(head)
    main, boundary = parsed.get_content_maintype(), parsed.get_boundary()
    if parsed.get_content_type() in _SEALED:
        raise _sealed(parsed, seven_bit=seven_bit)
    if main == "multipart" and boundary:
        parts = [_fit(*each, seven_bit=seven_bit) for each in _children(boundary, body)]
        return bodies.joined(_without(head, _ENCODING), boundary, parts)
    if main in {"message", "multipart"}:
        return _as_file(head, parsed.get_filename(), body)
    if _transfer_encoding(parsed) in _ENCODINGS:
        whole = BytesParser().parsebytes(head + b"\r\n" + body)
        body = bytes(whole.get_payload(decode=True))
    if _is_plain_text(parsed, body):
        body, encoding = bodies.transfer_encoded(body, seven_bit=seven_bit)
    else:
        body, encoding = bodies.base64(body), "base64"
    field = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    return Part(_without(head, _ENCODING) + field, body)


def _children(boundary: str, body: bytes) -> list[Part]:
    mark = re.escape(f"--{boundary}").encode()
    _, *pieces = re.split(rb"(?:\A|\r\n)" + mark + rb"(--)?[ \t]*(?=\r\n|\Z)", body)
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return [Part.parse(entity[2:]) for end, entity in pairs if not end]


def _sealed(parsed: Message, *, seven_bit: bool) -> LettermintInvalidMessage:
    problem = "8 bits, which the relay refuses" if seven_bit else "a NUL or lone CR"
    return LettermintInvalidMessage(
        f"the part {parsed.get_content_type()} has a line over {MAX_LINE} octets or "
        f"{problem}, and what is signed or encrypted cannot be encoded anew: encode what "
        "is in it before (RFC 1847 section 2.1)"
    )


def _as_file(head: bytes, name: str | None, octets: bytes) -> Part:
    """Write attached mail as a file of the same name, where it cannot be sent as mail."""
    made = bodies.octets(bodies.OCTET_STREAM, octets)
    kept = _without(head, _ENCODING, _TYPE)
    if b"content-disposition:" not in kept.lower():
        kept += bodies.disposition(name)
    return Part(kept + made.head, made.body)


def _without(head: bytes, *names: bytes) -> bytes:
    found = _FIELD.finditer(head)
    return b"".join(each[0] for each in found if each[1].lower() not in names)
