"""Text of any header: how it is checked, shown in errors, and written in lines."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from email.utils import format_datetime, parsedate_to_datetime
from uuid import UUID

from django_lettermint.exceptions import LettermintInvalidMessage, invalid_message

#: RFC 5322 section 3.6.8: ftext, printable ASCII without the colon.
FIELD_NAME = re.compile(r"[!-9;-~]+")
FIELD_NAME_RULE = (
    "it has one or more printable ASCII characters without space and colon"
)
#: RFC 5322 section 3.2.5: a phrase that needs no quotes, one blank between its words.
ATOMS = re.compile(r"[\w!#$%&'*+/=?^`{|}~-]+(?: [\w!#$%&'*+/=?^`{|}~-]+)*")
#: Characters that split lines or cannot be encoded: C0, DEL, C1, U+2028, U+2029, lone surrogates.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Characters that no header field can hold, encoded or not.
LINE_BREAK = re.compile("[\r\n\x00\ud800-\udfff]")

#: RFC 5322 section 2.1.1: octets in a line, CRLF not counted.
MAX_LINE = 998

_DATES = {"date", "orig-date", "resent-date"}
_MESSAGE_IDS = {"message-id", "resent-message-id"}
#: Fields that must not be given, and what does their job.
_REFUSED = {
    "bcc": "it would show the hidden recipients; use the message's `bcc`",
    "resent-bcc": "it would show the hidden recipients; use the message's `bcc`",
    "subject": "use the message's `subject`",
    "mime-version": "the backend writes it",
    "content-type": "use the message's `content_subtype` or attach_alternative()",
    "content-transfer-encoding": "the backend chooses it",
}
#: Python refuses to print longer integers, and no header line could hold them.
_MAX_INT_BITS = 4096
_VALUE_TYPES = "use str, int, float, bool, Decimal, UUID, date or datetime"

_ONE_SPACE = re.compile(" [^ \t]")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def invalid_value(field: str, value: object, rule: str) -> LettermintInvalidMessage:
    """Return the error for a value that breaks a rule."""
    return invalid_message(
        f"{field}: {short_repr(value)} cannot be sent: {rule}.", value
    )


def invalid_header(name: str, value: object, rule: str) -> LettermintInvalidMessage:
    """Return the error for the value of a header that breaks a rule."""
    return invalid_value(f"header {short_repr(name)}", value, rule)


def short_repr(value: object) -> str:
    """Return the repr of a value, shortened for an error text."""
    # reprlib's way with an int beyond sys.get_int_max_str_digits() depends on Python.
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        return f"<{type(value).__name__}>"
    return _REPR.repr(value)


def plain_str(value: object) -> object:
    """Turn a str subclass into the text it holds; leave other values alone."""
    # str() of an Enum member that is a str gives its name; a slice is always its text.
    return value[:] if isinstance(value, str) else value


def value_text(field: str, value: object) -> str:
    """Return a value as metadata and headers write it; refuse other types."""
    match value:
        case str():
            return value[:]
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() <= _MAX_INT_BITS:
            return int.__repr__(value)
        case float():
            return float.__repr__(value)
        case date():
            return value.isoformat()
    # Django's lazy text and email's Header are no str, but have its methods.
    if isinstance(value, Decimal | UUID) or hasattr(value, "encode"):
        return str(value)
    raise invalid_value(field, value, _VALUE_TYPES)


def header_text(name: str, value: object) -> str:
    """Return the text of a header that a caller gave, checked."""
    field, lower = f"header {short_repr(name)}", name.lower()
    if not FIELD_NAME.fullmatch(name):
        raise invalid_value("header name", name, FIELD_NAME_RULE)
    if rule := _REFUSED.get(lower, ""):
        raise LettermintInvalidMessage(f"{field} is refused: {rule}.")
    if lower in _DATES and isinstance(value, datetime):
        return format_datetime(value)
    text = single_line(field, value_text(field, value))
    if lower in _DATES and not _is_date(text):
        rule = "give a datetime, or write it as RFC 5322 does"
        raise invalid_value(field, text, rule)
    if lower in _MESSAGE_IDS and not re.fullmatch("<[!-;=?-~]+>", text):
        rule = "write <left@right> in ASCII without blanks (RFC 5322)"
        raise invalid_value(field, text, rule)
    return text


def single_line(field: str, value: object) -> str:
    """Return the text of a field of any length, without line breaks."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise invalid_value(field, value, "give it as text")
    text = value[:] if isinstance(value, str) else str(value)
    if LINE_BREAK.search(text):
        raise invalid_value(field, text, "it has a line break, NUL or lone surrogate")
    return text


def verbatim(name: str, text: str, width: int = MAX_LINE) -> bytes:
    """Write a field as it is, folded at its blanks if it is wider."""
    if len(name) + len(": ") + len(text) <= width:
        return f"{name}: {text}\r\n".encode()
    return fold(name, pieces(f" {text}"), width)


def pieces(text: str) -> list[str]:
    """Split a field's value where a line may end: each piece begins with its blanks."""
    found = re.findall(r"[ \t]*[^ \t]+|[ \t]+", text)
    if len(found) > 1 and not found[-1].strip(" \t"):
        # No line may have nothing but blanks.
        found[-2:] = ["".join(found[-2:])]
    return found


def fold(name: str, value: Iterable[str], width: int) -> bytes:
    """Write a field, CRLF included, folded before pieces; unfolding restores the value.

    A line ends only where it would be too wide, and never directly after the colon.
    Raises LettermintInvalidMessage for a line over 998 octets (RFC 5322 section 2.1.1).
    """
    first, *others = value
    lines, line = [], [f"{name}:{first}"]
    for piece in others:
        line.append(piece)
        if sum(map(len, line)) > width:
            # Some readers make one space of a fold and all blanks around it.
            positions = range(len(line) - 1, 0, -1)
            end = next((at for at in positions if _ONE_SPACE.match(line[at])), 0)
            if not end or sum(map(len, line[end:])) > width:
                end = len(line) - 1
            lines.append("".join(line[:end]))
            line = line[end:]
    octets = "\r\n".join([*lines, "".join(line), ""]).encode()
    if len(octets) > MAX_LINE and max(map(len, octets.split(b"\r\n"))) > MAX_LINE:
        rule = f"a line has over {MAX_LINE} octets (RFC 5322) and cannot be folded at a space"
        raise invalid_header(name, "".join([first, *others]).lstrip(), rule)
    return octets


def _is_date(text: str) -> bool:
    try:
        parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return False
    return text.isascii()
