"""One address in its three forms: as given, as headers name it, as SMTP commands do."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.headerregistry import Address

from django.utils.functional import Promise

from django_lettermint import extras
from django_lettermint.exceptions import LettermintInvalidMessage, invalid_message

#: Octets of a path without its angle brackets (RFC 5321 section 4.5.3.1.3).
MAX_LENGTH = 254

IdnaEncode = Callable[[str], str]

# RFC 5322 sections 3.2.3 and 3.4.1; beyond ASCII, RFC 6532.
_ATEXT = r"""[^\x00- \x7f"(),.:;<>@\[\\\]]+"""
_DOT_ATOM = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_PLAIN = re.compile(
    r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+"
)
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")')
_COMMENT = r"\((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*\)"
# Unclosed ones are matched too: otherwise the search starts again at each character.
_OPEN = r'"(?:[^"\\]|\\.)*|\((?:[^()\\]|\\.)*'
_QUOTED_OR_COMMENT = re.compile(rf"({_QUOTED.pattern[1:-1]}|{_COMMENT})|{_OPEN}")
#: One entry of a list that commas divide.
_ENTRY = re.compile(rf"(?:{_QUOTED.pattern[1:-1]}|{_COMMENT}|{_OPEN}|[^,])+")
# No angle brackets in quotes: some servers end the address there.
_LOCAL_PART = re.compile(r'"((?:[^"\\<>]|\\[^<>])+)"|([^"(),:;<>@\[\\\] ]+)')

#: What Django and Python change in names: they end lines, strip blanks and decode words.
_CHANGED = re.compile(rf"{extras.CONTROL.pattern}|=\?|^ | $")

_NO_BREAKS = "it has a line break, NUL or lone surrogate"
_FORM = "write one address as user@domain or Name <user@domain>"
_QUOTES = "put the name in double quotes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """One parsed address."""

    #: The bare address as the caller wrote it: the key in `anymail_status.recipients`.
    given: str
    #: The bare address with an ASCII domain, for SMTP commands and headers.
    address: str
    #: The display name, decoded.
    name: str = ""

    @property
    def text(self) -> str:
        """Return name and address as callers write them, the name not encoded."""
        if not self.name:
            return self.address
        if _CHANGED.search(self.name):
            return f"{' '.join(extras.encode(self.name))} <{self.address}>"
        plain = extras.ATOMS.fullmatch(self.name)
        return f"{self.name if plain else _quoted(self.name)} <{self.address}>"

    @property
    def key(self) -> str:
        """Return what addresses of one mailbox have in common (RFC 5321 section 2.4)."""
        local_part, _, domain = self.address.rpartition("@")
        return f"{local_part}@{domain.lower()}"


def parse(field: str, values: Iterable[object], idna: IdnaEncode) -> list[Mailbox]:
    """Parse each value as exactly one address; None and "" are left out, as in Django.

    Raises LettermintInvalidMessage naming the field.
    """
    return [parse_one(field, value, idna) for value in values if value]


def parse_one(field: str, value: object, idna: IdnaEncode) -> Mailbox:
    """Parse one address; raise LettermintInvalidMessage naming the field."""
    text = ""
    try:
        if not isinstance(value, str | Address | Promise):
            raise ValueError("give it as text")
        if isinstance(value, Address):
            text = f"{_quoted(value.display_name)} <{value.addr_spec}>"
        else:
            text = value[:] if isinstance(value, str) else str(value)
        if _PLAIN.fullmatch(text) and len(text) <= MAX_LENGTH:
            return Mailbox(given=text, address=text)
        name, local_part, domain = _parsed(text)
        address = f"{local_part}@{_ascii(domain, idna)}"
        if len(address.encode()) > MAX_LENGTH:
            raise ValueError(f"{_FORM} with at most {MAX_LENGTH} octets (RFC 5321)")
    except ValueError as error:
        problem = f"{field}: {extras.short_repr(value)} is refused: {error}"
        raise invalid_message(problem, text) from error
    return Mailbox(given=f"{local_part}@{domain}", address=address, name=name)


def parse_list(field: str, text: str, idna: IdnaEncode) -> list[Mailbox]:
    """Parse the value of a header: addresses separated by commas, or a group in ASCII."""
    if is_group(text):
        if not text.isascii():
            rule = "groups are not encoded: write it in ASCII, or its addresses alone"
            raise extras.invalid_value(field, text, rule)
        text = text[_masked(text).index(":") + 1 :].rstrip(" ").removesuffix(";")
    entries = [each.strip(" \t") for each in _ENTRY.findall(text)]
    try:
        return parse(field, entries, idna)
    except LettermintInvalidMessage as error:
        if len(entries) == 1:
            raise
        problem = f"{error}; {_QUOTES} if it has commas"
        raise LettermintInvalidMessage(problem) from error


def kept(field: str, mailboxes: Iterable[Mailbox]) -> list[str]:
    """Return addresses in a form that Django's and Python's classes keep."""
    texts = [mailbox.text for mailbox in mailboxes]
    together = ", ".join(texts)
    if '"@' in together and not together.isascii():
        rule = (
            "beside text outside of ASCII, Django quotes what is in quotes before an @"
        )
        raise extras.invalid_value(field, together, rule)
    return texts


def is_group(text: str) -> bool:
    """Return whether the value of a header is a group: `name: addresses;`."""
    return bool(re.fullmatch(r"[^<>@,:;]+:.*; *", _masked(text)))


def _masked(text: str) -> str:
    """Hide quoted strings and comments behind text of the same length."""
    return _QUOTED_OR_COMMENT.sub(
        lambda found: "x" * len(found[0]) if found[1] else found[0], text
    )


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[str, str, str]:
    """Return display name, local part and domain; raise ValueError naming the rule."""
    if extras.LINE_BREAK.search(text):
        raise ValueError(_NO_BREAKS)
    text, comment = text.strip(" \t"), ""
    for found in _QUOTED_OR_COMMENT.finditer(text):
        if found.end() == len(text) and (found[1] or "").startswith("("):
            comment, text = found[0], text[: found.start()].rstrip(" \t")
    masked, phrase, spec = _masked(text), "", text
    if masked.endswith(">") and "<" in masked:
        start = masked.rindex("<")
        phrase, spec = text[:start].strip(" \t"), text[start + 1 : -1].strip(" ")
    # Some programs would read more than one address in it.
    if sum("@" in each for each in re.split("[,;]", masked)) > 1:
        raise ValueError(f"one address an entry; {_FORM}")
    if is_group(text):
        raise ValueError(f"it is a group: one address an entry; {_FORM}")
    if set(_masked(phrase)) & set('<>,@"'):
        raise ValueError(f"{_QUOTES}; {_FORM}")
    name = " ".join(filter(None, [_unquoted(phrase), phrase and _decoded(comment)]))
    name = name or re.sub(r"\\(.)", r"\1", _decoded(comment[1:-1]))
    if extras.LINE_BREAK.search(name):  # from an encoded word
        raise ValueError(_NO_BREAKS)
    return name, *_split(spec)


def _unquoted(phrase: str) -> str:
    """Return the text of a phrase: encoded words are decoded, but not in quotes."""
    pieces = _QUOTED.split(phrase)
    pieces[::2] = map(_decoded, pieces[::2])
    pieces[1::2] = (re.sub(r"\\(.)", r"\1", quoted[1:-1]) for quoted in pieces[1::2])
    return "".join(pieces)


def _decoded(text: str) -> str:
    try:
        return extras.decode(text)
    except ValueError:  # readers show it as it is, too
        return text


def _split(spec: str) -> tuple[str, str]:
    """Return local part and domain of a bare address."""
    local_part, _, domain = spec.rpartition("@")
    # IDNA has rules for joiners in domains.
    for character in local_part + re.sub("[\u200c\u200d]", "", domain):
        category = unicodedata.category(character)
        if category in {"Cc", "Cf", "Zl", "Zp", "Zs"} and character != " ":
            name = unicodedata.name(character, "a control character")
            raise ValueError(f"it has U+{ord(character):04X} ({name}); {_FORM}")
    found = _LOCAL_PART.fullmatch(local_part)
    if not found or not domain or set(domain) & set('"(),:;<>[\\] '):
        raise ValueError(_FORM)
    text = found[2] or re.sub(r"\\(.)", r"\1", found[1])
    if "=?" in text:
        raise ValueError(f"{_FORM}; a user with =? is none")
    if _DOT_ATOM.fullmatch(text):
        return text, domain
    if found[2]:
        rule = f"dots at the ends or in a row need quotes, {_quoted(text)}@{domain}"
        raise ValueError(f"{_FORM}; {rule}")
    return _quoted(text), domain


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _ascii(domain: str, idna: IdnaEncode) -> str:
    try:
        encoded = domain if domain.isascii() else idna(domain)
    except ValueError as error:
        reason = f"its domain has no form in ASCII ({error.__cause__ or error})"
        advice = "choose another domain or `idna_encoder`"
        raise ValueError(f"{reason}; {advice}") from error
    if not _DOMAIN.fullmatch(encoded):
        raise ValueError(_FORM)
    return encoded
