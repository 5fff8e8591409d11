"""One address in its three forms: as given, as headers name it, as SMTP commands do."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.headerregistry import Address

from django.utils.functional import Promise

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import LINE_BREAK, decode, short_repr

#: Octets of a path without its angle brackets (RFC 5321 section 4.5.3.1.3).
MAX_LENGTH = 254

IdnaEncode = Callable[[str], str]

# RFC 5322 sections 3.2.3 and 3.4.1; beyond ASCII, RFC 6532.
_ATEXT = r"""[^\x00- \x7f"(),.:;<>@\[\\\]]+"""
_DOT_ATOM = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_PLAIN = re.compile(
    r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+"
)
_QUOTED_STRING = r'"(?:[^"\\]|\\.)*"'
_COMMENT = r"\((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*\)"
_QUOTED = re.compile(f"({_QUOTED_STRING})")
_QUOTED_OR_COMMENT = re.compile(f"{_QUOTED_STRING}|{_COMMENT}")
# Servers that end a quoted part at the next angle bracket exist.
_LOCAL_PART = re.compile(r'"((?:[^"\\<>]|\\[^<>])+)"|([^"(),:;<>@\[\\\] ]+)')
_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_ATOMS = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
)

_NO_BREAKS = "it has a line break, NUL or lone surrogate"
_FORM = "write one address as user@domain or Name <user@domain>"
_ONE_AN_ENTRY = "one address an entry"
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
        """Return name and address as RFC 5322 writes them, the name not encoded."""
        if not self.name:
            return self.address
        # Only in quotes, what looks like an encoded word is none.
        if _ATOMS.fullmatch(self.name) and "=?" not in self.name:
            return f"{self.name} <{self.address}>"
        quoted = re.sub(r'(["\\])', r"\\\1", self.name)
        return f'"{quoted}" <{self.address}>'

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
    if not isinstance(value, str | Address | Promise):
        raise _refused(field, value, "give it as text")
    text = str(value)
    if _PLAIN.fullmatch(text) and len(text) <= MAX_LENGTH:
        return Mailbox(given=text, address=text)
    try:
        name, local_part, domain = _parsed(text)
        ascii_domain = domain if domain.isascii() else _idna(domain, idna)
    except ValueError as error:
        raise _refused(field, text, str(error)) from error
    address = f"{local_part}@{ascii_domain}"
    if len(address.encode()) > MAX_LENGTH:
        rule = f"write user@domain with at most {MAX_LENGTH} octets (RFC 5321)"
        raise _refused(field, text, rule)
    return Mailbox(given=f"{local_part}@{domain}", address=address, name=name)


def parse_list(field: str, text: str, idna: IdnaEncode) -> list[Mailbox]:
    """Parse the value of a header that holds addresses, separated by commas."""
    masked = _masked(text)
    commas = [at for at, character in enumerate(masked) if character == ","]
    starts, ends = [0, *(at + 1 for at in commas)], [*commas, len(text)]
    entries = [text[a:b] for a, b in zip(starts, ends, strict=True)]
    try:
        return [parse_one(field, each, idna) for each in entries if each.strip(" \t")]
    except LettermintInvalidMessage as error:
        if commas and _QUOTES not in str(error):
            error.args = (f"{error}; {_QUOTES} if it has a comma",)
        raise


def is_group(text: str) -> bool:
    """Return whether the value of a header is a group: `name: addresses;`."""
    return bool(re.fullmatch(r"[^<>@,:;]+:.*; *", _masked(text)))


def group_members(text: str) -> str:
    """Return the addresses of a group, without its name."""
    return text[_masked(text).index(":") + 1 :].rstrip(" ").removesuffix(";")


def _masked(text: str) -> str:
    """Hide quoted strings and comments, of the same length."""
    return _QUOTED_OR_COMMENT.sub(lambda found: "x" * len(found[0]), text)


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[str, str, str]:
    """Return display name, local part and domain; raise ValueError with the rule."""
    if LINE_BREAK.search(text):
        raise ValueError(_NO_BREAKS)
    text = text.strip(" \t")
    comment = ""
    spans = list(_QUOTED_OR_COMMENT.finditer(text))
    if spans and spans[-1].end() == len(text) and spans[-1][0].startswith("("):
        comment = _name(spans[-1][0][1:-1], quoted=False)
        text = text[: spans[-1].start()].rstrip(" \t")
    masked = _masked(text)
    phrase, spec = "", text
    if masked.endswith(">") and "<" in masked:
        start = masked.rindex("<")
        phrase, spec = text[:start], text[start + 1 : -1].strip(" ")
    _check_alone(masked, masked[: len(phrase)])
    name = _name(phrase.strip(" \t"))
    if comment:
        name = f"{name} ({comment})" if name else comment
    if LINE_BREAK.search(name):  # out of an encoded word
        raise ValueError(_NO_BREAKS)
    return name, *_spec(spec)


def _check_alone(masked: str, phrase: str) -> None:
    """Refuse what some parser could read as other addresses than one."""
    if sum("@" in each for each in re.split("[,;]", masked)) > 1:
        raise ValueError(f"{_ONE_AN_ENTRY}; {_FORM}")
    if is_group(masked):
        raise ValueError(f"it is a group: {_ONE_AN_ENTRY}; {_FORM}")
    if set(phrase) & set('<>,@"') or ("," in masked and "@" in masked):
        raise ValueError(f"{_QUOTES}; {_FORM}")


def _name(phrase: str, *, quoted: bool = True) -> str:
    """Return the text of a phrase or comment: quoted pairs resolved, words decoded."""
    texts = []
    for piece in _QUOTED.split(phrase) if quoted else [phrase]:
        if quoted and piece.startswith('"'):
            texts.append(re.sub(r"\\(.)", r"\1", piece[1:-1]))
            continue
        try:
            text = decode(piece)
        except ValueError:  # readers, too, will show it as it is
            text = piece
        texts.append(text if quoted else re.sub(r"\\(.)", r"\1", text))
    return "".join(texts)


def _spec(spec: str) -> tuple[str, str]:
    """Return local part and domain of a bare address."""
    local_part, at, domain = spec.rpartition("@")
    # IDNA knows where a domain may have joiners.
    for character in local_part + re.sub("[\u200c\u200d]", "", domain):
        category = unicodedata.category(character)
        if category in {"Cc", "Cf", "Zl", "Zp", "Zs"} and character != " ":
            name = unicodedata.name(character, "a control character")
            raise ValueError(f"it has U+{ord(character):04X} ({name}); {_FORM}")
    found = _LOCAL_PART.fullmatch(local_part)
    if not at or not domain or not found or set(domain) & set('"(),:;<>[\\] '):
        raise ValueError(_FORM)
    text = found[2] or re.sub(r"\\(.)", r"\1", found[1])
    if found[2] and not _DOT_ATOM.fullmatch(text):
        raise ValueError(
            f'{_FORM}; dots at the ends or in a row need quotes: "{text}"@{domain}'
        )
    if "=?" in text:
        raise ValueError(f"{_FORM}, user without `=?`")
    if not _DOT_ATOM.fullmatch(text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    if domain.isascii() and not _DOMAIN.fullmatch(domain):
        raise ValueError(_FORM)
    return text, domain


def _idna(domain: str, idna: IdnaEncode) -> str:
    try:
        encoded = idna(domain)
    except ValueError as error:
        reason = error.__cause__ or error
        raise ValueError(
            f"the domain has no form in ASCII ({reason}); {_FORM}, or choose another "
            "`idna_encoder`"
        ) from error
    if not _DOMAIN.fullmatch(encoded):
        raise ValueError(f"{_FORM}, a domain that `idna_encoder` encodes in ASCII")
    return encoded


def _refused(field: str, value: object, rule: str) -> LettermintInvalidMessage:
    return LettermintInvalidMessage(f"{field}: {short_repr(value)} is refused: {rule}")
