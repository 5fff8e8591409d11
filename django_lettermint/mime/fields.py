"""Header fields: free text, addresses, verbatim ASCII and MIME parameters, folded."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import quote

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import (
    FIELD_NAME,
    LINE_BREAK,
    MAX_WORD,
    encode,
    fold,
    invalid_value,
    pieces,
    short_repr,
    value_text,
)

from .addresses import (
    IdnaEncode,
    Mailbox,
    group_members,
    is_group,
    parse_list,
    parse_one,
)

#: Characters of a line, where there is a blank to fold it at (RFC 5322 section 2.1.1).
WIDTH = 78
#: The same for lines that hold encoded words (RFC 2047 section 2).
_ENCODED_WIDTH = 76
#: The shortest encoded word of any character.
_SHORTEST_WORD = len("=?utf-8?b?8J+YgA==?=")

#: Fields that hold addresses (RFC 5322, 8098; the others by custom).
ADDRESS_FIELDS = frozenset(
    [
        "from",
        "to",
        "cc",
        "reply-to",
        "sender",
        "resent-from",
        "resent-to",
        "resent-cc",
        "resent-sender",
        "resent-reply-to",
        "disposition-notification-to",
        "return-receipt-to",
        "errors-to",
        "mail-followup-to",
        "mail-reply-to",
    ]
)
FREE_TEXT = {"subject", "comments", "keywords"}
_DATES = {"date", "orig-date", "resent-date"}
_MESSAGE_IDS = {"message-id", "resent-message-id"}
#: Fields that programs read, in which RFC 2047 section 5 allows no encoded words.
_STRUCTURED = re.compile(
    r"list-.*|arc-.*|bimi-.*|(?:.*-)?(?:signature|message-id)|references|in-reply-to"
    r"|archived-at|authentication-results|autocrypt|auto-submitted|feedback-id"
    r"|received(?:-spf)?|return-path|precedence|importance|(?:x-)?priority"
)
#: Fields that must not be given, and what does their job.
_REFUSED = {
    "bcc": "it would show the hidden recipients; use the message's `bcc`",
    "resent-bcc": "it would show the hidden recipients; use the message's `bcc`",
    "subject": "use the message's `subject`",
    "mime-version": "the backend writes it",
    "content-type": "use the message's `content_subtype` or attach_alternative()",
    "content-transfer-encoding": "the backend chooses it",
}
_ID = re.compile(r"<[!-;=?-~]+>")
_ASCII = re.compile(r"[\t -~]*")
#: Text that any reader shows as it is: words, one blank between them.
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_ATOMS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
)
#: What a quoted string holds without quoted pairs, which not all readers resolve.
_QUOTABLE = re.compile(r"[!#-[\]-~]+(?: [!#-[\]-~]+)*")
_FILE_NAME = re.compile(
    r"[A-Za-z0-9!#$&()+,.=@^_`{}~-]+(?: [A-Za-z0-9!#$&()+,.=@^_`{}~-]+)*"
)


def header_text(name: str, value: object) -> str:
    """Return the text of a header that a caller gave, checked; refuse what is none."""
    if not FIELD_NAME.fullmatch(name):
        rule = "it has one or more printable ASCII characters without space and colon"
        raise invalid_value("header name", name, rule)
    field = f"header {short_repr(name)}"
    lower = name.lower()
    if rule := _REFUSED.get(lower, ""):
        raise LettermintInvalidMessage(f"{field} is refused: {rule}.")
    if lower in _DATES and isinstance(value, datetime):
        return format_datetime(value)
    text = single_line(field, value_text(field, value))
    if lower in _DATES and not _is_date(text):
        rule = "give a datetime, or write it as RFC 5322 does"
        raise invalid_value(field, text, rule)
    if lower in _MESSAGE_IDS and not _ID.fullmatch(text):
        rule = "write <left@right> in ASCII without blanks (RFC 5322)"
        raise invalid_value(field, text, rule)
    return text


def single_line(field: str, value: object) -> str:
    """Return the text of what stands in one field, however long that is."""
    text = str(value)
    if LINE_BREAK.search(text):
        rule = "it has a line break, NUL or lone surrogate"
        raise invalid_value(field, text, rule)
    return text


def write(name: str, text: str, idna: IdnaEncode) -> bytes:
    """Write a header as its name asks for; CRLF included."""
    lower = name.lower()
    field = f"header {short_repr(name)}"
    if lower in ADDRESS_FIELDS:
        return _written_addresses(name, field, text, idna)
    if lower in FREE_TEXT:
        return free_text(name, text)
    if _ASCII.fullmatch(text):
        width = _ENCODED_WIDTH if "=?" in text else WIDTH
        return fold(name, pieces(f" {text}"), width)
    if lower == "list-id" and (
        found := re.fullmatch(r"([^<>]*?) *(<[!-;=?-~]+>)", text)
    ):
        phrase = parse_one(field, f"{found[1]} <list@id.invalid>", idna).name
        return fold(name, [*_words(name, phrase), f" {found[2]}"], _ENCODED_WIDTH)
    if _STRUCTURED.fullmatch(lower):
        rule = (
            "programs read it, so that it cannot be encoded (RFC 2047 section 5): "
            "percent-encode links, and write domains by IDNA, as xn--…"
        )
        raise invalid_value(field, text, rule)
    return free_text(name, text)


def free_text(name: str, text: str) -> bytes:
    """Write text for people: as it is if it is plain, else in encoded words."""
    if not text:
        return f"{name}: \r\n".encode()
    # A word that fills a line can be divided only when it is encoded.
    if _WORDS.fullmatch(text) and "=?" not in text:
        if len(name) + 2 + len(text) <= WIDTH:
            return f"{name}: {text}\r\n".encode()
        if max(map(len, text.split(" "))) < 900:
            return fold(name, pieces(f" {text}"), WIDTH)
    return fold(name, _words(name, text), _ENCODED_WIDTH)


def _words(name: str, text: str) -> list[str]:
    """Encode text for the beginning of a field, each word with its blank in front."""
    # Beside a very long name the first one makes a line too long, since not all readers
    # take a line that ends behind the colon as it is meant.
    room = max(_ENCODED_WIDTH - len(f"{name}: "), _SHORTEST_WORD)
    return [f" {word}" for word in encode(text, min(room, MAX_WORD))]


def addresses(name: str, mailboxes: Sequence[Mailbox]) -> bytes:
    """Write a list of addresses; beyond ASCII, only local parts are raw (RFC 6532)."""
    if len(mailboxes) == 1 and not mailboxes[0].name:
        return fold(name, [f" {mailboxes[0].address}"])
    parts: list[str] = []
    width = WIDTH
    for mailbox in mailboxes:
        phrase = _phrase("" if parts else name, mailbox.name)
        if any("=?" in each for each in phrase):
            width = _ENCODED_WIDTH
        spec = f"<{mailbox.address}>" if phrase else mailbox.address
        parts += [*phrase, f" {spec},"]
    parts[-1] = parts[-1][:-1]
    return fold(name, parts, width)


def _phrase(name: str, text: str) -> list[str]:
    """Write a display name: atoms, a quoted string or encoded words."""
    if not text:
        return []
    if (
        "=?" not in text
        and _QUOTABLE.fullmatch(text)
        and len(max(text.split(" "), key=len)) < 900
    ):
        return pieces(f" {text}" if _ATOMS.fullmatch(text) else f' "{text}"')
    return _words(name, text)


def _written_addresses(name: str, field: str, text: str, idna: IdnaEncode) -> bytes:
    mailboxes = _mailboxes(field, text, idna)
    if is_group(text):
        return fold(name, pieces(f" {text}"), WIDTH)
    return addresses(name, mailboxes) if mailboxes else b""


def address_text(name: str, text: str, idna: IdnaEncode) -> str:
    """Return the value of a header of addresses with its domains in ASCII."""
    field = f"header {short_repr(name)}"
    return ", ".join(each.text for each in _mailboxes(field, text, idna))


def _mailboxes(field: str, text: str, idna: IdnaEncode) -> list[Mailbox]:
    if not is_group(text):
        return parse_list(field, text, idna)
    if not text.isascii():
        rule = "write a group in ASCII, or its addresses alone: groups are not encoded"
        raise invalid_value(field, text, rule)
    return parse_list(field, group_members(text), idna)


def parameters(name: str, value: str, given: Mapping[str, str]) -> bytes:
    """Write a MIME field with parameters, the latter encoded if need be (RFC 2231)."""
    parts = [f" {value}"]
    for key, text in given.items():
        parts[-1] += ";"
        parts += [f" {each}" for each in _parameter(key, text)]
    return fold(name, parts, WIDTH)


def _parameter(key: str, text: str) -> Iterable[str]:
    if _FILE_NAME.fullmatch(text) and len(text) <= WIDTH - len(key) - 5:
        return [f'{key}="{text}"']
    characters = [quote(character, safe="") for character in text]
    octets = f"{key}*=utf-8''{''.join(characters)}"
    if len(octets) < WIDTH - 1:
        return [octets]
    sections: list[str] = []
    section = f"{key}*0*=utf-8''"
    for character in characters:
        # Each section is decoded by itself, so that it holds whole characters.
        if len(section) + len(character) > WIDTH - 2:
            sections.append(f"{section};")
            section = f"{key}*{len(sections)}*="
        section += character
    return [*sections, section]


def _is_date(text: str) -> bool:
    with suppress(ValueError, OverflowError):
        parsedate_to_datetime(text)
        return text.isascii()
    return False


def date(value: datetime) -> str:
    """Write a date as mail does; the mails of a second share the work."""
    return _date_text(value.replace(microsecond=0), value.utcoffset())


@functools.lru_cache(maxsize=8)
def _date_text(value: datetime, _: object) -> str:
    # Equal dates of two zones are written differently.
    return format_datetime(value)
