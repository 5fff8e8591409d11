"""Header fields: free text, addresses, verbatim ASCII and MIME parameters, folded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from django_lettermint import extras

from .addresses import IdnaEncode, Mailbox, is_group, kept, parse_list, parse_one

#: Characters of a line, where there is a blank to fold it at (RFC 5322 section 2.1.1).
WIDTH = 78
#: The same for lines that hold encoded words (RFC 2047 section 2).
_ENCODED_WIDTH = 76
#: Longer words are divided where that is possible.
_MAX_PIECE = 900

_STANDARD = {"from", "to", "cc", "sender", "reply-to"}
#: Fields that hold addresses (RFC 5322, 8098; some by custom).
ADDRESS_FIELDS = frozenset(
    _STANDARD
    | {f"resent-{name}" for name in _STANDARD}
    | {"disposition-notification-to", "return-receipt-to", "errors-to"}
    | {"mail-followup-to", "mail-reply-to"}
)
FREE_TEXT = frozenset({"subject", "comments", "keywords"})
#: Fields that programs read, in which RFC 2047 section 5 allows no encoded words.
_STRUCTURED = re.compile(
    r"list-.*|arc-.*|bimi-.*|(?:.*-)?(?:signature|message-id)|references|in-reply-to"
    r"|content-id|archived-at|authentication-results|autocrypt|auto-submitted|feedback-id"
    r"|received(?:-spf)?|return-path|precedence|importance|(?:x-)?priority"
)
#: Text that all readers show unchanged: words with one blank between them.
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
#: The same without quotes and backslashes, which not all readers unescape.
_QUOTABLE = re.compile(r"[!#-[\]-~]+(?: [!#-[\]-~]+)*")
_RAW = r'[^\0-\x20"\\\x7f-\xa0\u2028\u2029]+'
_RAW_QUOTABLE = re.compile(f"{_RAW}(?: {_RAW})*")
_FILE_NAME = re.compile(r"[\w!#$&()+,.=@^`{}~-]+(?: [\w!#$&()+,.=@^`{}~-]+)*", re.ASCII)


def as_kept(name: str, text: str, idna: IdnaEncode) -> str:
    """Return a header's text in a form that Django's and Python's classes keep.

    They encode domains by IDNA 2003, which leads elsewhere, end lines at control
    characters, and decode what looks like an encoded word.
    """
    is_free = name.lower() in FREE_TEXT or not text.isascii()
    if name.lower() in ADDRESS_FIELDS:
        if text.isascii() and not extras.CONTROL.search(text):
            return text
        mailboxes = parse_list(f"header {extras.short_repr(name)}", text, idna)
        return ", ".join(kept(f"header {extras.short_repr(name)}", mailboxes))
    if extras.CONTROL.search(text) or ("=?" in text and is_free):
        return " ".join(extras.encode(text))
    return text


def write(name: str, text: str, idna: IdnaEncode) -> bytes:
    """Write a header by the rules for its name, CRLF included."""
    field, lower = f"header {extras.short_repr(name)}", name.lower()
    if lower in ADDRESS_FIELDS:
        mailboxes = parse_list(field, text, idna)
        if lower == "from" and not mailboxes:
            raise extras.invalid_value(field, text, "a message has a sender (RFC 5322)")
        if not is_group(text):
            return addresses(name, mailboxes) if mailboxes else b""
    elif lower in FREE_TEXT:
        return free_text(name, text)
    if re.fullmatch(r"[\t -~]*", text):
        return extras.verbatim(name, text, _ENCODED_WIDTH if "=?" in text else WIDTH)
    found = re.fullmatch("([^<>]+)(<[!-;=?-~]+>)", text)
    if lower == "list-id" and found:
        phrase = parse_one(field, f"{found[1]} <list@id.invalid>", idna).name
        words = [*_words(name, phrase), f" {found[2]}"]
        return extras.fold(name, words, _ENCODED_WIDTH)
    if _STRUCTURED.fullmatch(lower):
        rule = (
            "programs read it, so that it cannot be encoded (RFC 2047 section 5): "
            "percent-encode links, and write domains by IDNA (xn--)"
        )
        raise extras.invalid_value(field, text, rule)
    return free_text(name, text)


def free_text(name: str, text: str) -> bytes:
    """Write text for people: verbatim if it is plain, else in encoded words."""
    if _is_plain(text, _WORDS) or not text:
        return extras.verbatim(name, text, WIDTH)
    return extras.fold(name, _words(name, text), _ENCODED_WIDTH)


def _is_plain(text: str, form: re.Pattern[str]) -> bool:
    """Return whether readers show text unchanged and lines can be folded in it."""
    if "=?" in text or not form.fullmatch(text):
        return False
    return max(map(len, text.encode().split(b" "))) <= _MAX_PIECE


def _words(name: str, text: str) -> list[str]:
    """Encode text for the beginning of a field, each word with its blank in front."""
    # Behind a very long name, the first line is too long: some readers misread a field
    # whose first line ends at the colon.
    room = max(_ENCODED_WIDTH - len(f"{name}: "), extras.SHORTEST_WORD)
    return [f" {word}" for word in extras.encode(text, min(room, extras.MAX_WORD))]


def addresses(name: str, mailboxes: Sequence[Mailbox]) -> bytes:
    """Write a list of addresses; those that need SMTPUTF8 are not encoded (RFC 6532)."""
    parts: list[str] = []
    for mailbox in mailboxes:
        phrase = _phrase("" if parts else name, mailbox) if mailbox.name else []
        spec = f"<{mailbox.address}>" if phrase else mailbox.address
        parts += [*phrase, f" {spec},"]
    parts[-1] = parts[-1][:-1]
    encoded = any("=?" in each for each in parts)
    return extras.fold(name, parts, _ENCODED_WIDTH if encoded else WIDTH)


def _phrase(name: str, mailbox: Mailbox) -> list[str]:
    """Write a display name: atoms, a quoted string or encoded words."""
    text = mailbox.name
    form = _QUOTABLE if mailbox.address.isascii() else _RAW_QUOTABLE
    if not _is_plain(text, form):
        return _words(name, text)
    return extras.pieces(f" {text}" if extras.ATOMS.fullmatch(text) else f' "{text}"')


def parameters(name: str, value: str, given: Mapping[str, str]) -> bytes:
    """Write a MIME field with parameters, encoded if need be (RFC 2231)."""
    pieces = [f" {value}"]
    for key, text in given.items():
        pieces[-1] += ";"
        pieces += [f" {each}" for each in _sections(key, text)]
    return extras.fold(name, pieces, WIDTH)


def _sections(key: str, text: str) -> Iterator[str]:
    if _FILE_NAME.fullmatch(text) and len(text) < WIDTH - len(f' {key}="";'):
        yield f'{key}="{text}"'
        return
    section = f"{key}*=utf-8''{quote(text, safe='')}"
    if len(section) < WIDTH - 2:
        yield section
        return
    number, section = 0, f"{key}*0*=utf-8''"
    for character in text:  # readers decode each section by itself
        octets = quote(character, safe="")
        if len(section) + len(octets) > WIDTH - 2:
            yield f"{section};"
            number += 1
            section = f"{key}*{number}*="
        section += octets
    yield section
