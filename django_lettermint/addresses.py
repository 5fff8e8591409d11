"""Addresses: as the caller gave them, as headers show them, as SMTP says them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.headerregistry import Address

from anymail.exceptions import AnymailInvalidAddress
from anymail.utils import EmailAddress, is_lazy, parse_address_list

from .exceptions import LettermintInvalidMessage
from .extras import CONTROL, shown

#: Octets of a path without its angle brackets (RFC 5321 section 4.5.3.1.3).
MAX_LENGTH = 254

IdnaEncode = Callable[[str], str]

_PLAIN = re.compile(
    r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+"
)
# RFC 5322 sections 3.2.3 and 3.4, for text whose quoted strings and comments are taken out.
_ATOMS = r"""[^\x00- \x7f"(),.:;<>@\[\\\]]+(?:\.[^\x00- \x7f"(),.:;<>@\[\\\]]+)*"""
_SPEC = rf" *(?:{_ATOMS}|\0) *@ *{_ATOMS} *"
_MAILBOX = rf"""(?:[^"(),:;<>@\[\\\]]*<{_SPEC}> *|{_SPEC})"""
_MAILBOXES = re.compile(rf"{_MAILBOX}(?:,{_MAILBOX})*")
_QUOTED_OR_COMMENT = re.compile(
    r"""(")(?:[^"\\]|\\.)*"|\((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*\)"""
)
# Quoted angle brackets are legal, but servers that look for the next ">" exist.
_WIRE = re.compile(
    rf"""(?:{_ATOMS}|"(?:[^\x00-\x1f\x7f"\\<>]|\\[ -;=?-~])*")"""
    r"@[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
)

_NEEDS_QUOTES = "a name with a comma or colon needs quotes"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One parsed address."""

    #: The bare address as the caller wrote it: the key in `anymail_status.recipients`.
    given: str
    #: The bare address with an ASCII domain, for MAIL and RCPT.
    wire: str
    #: Display name and address with an ASCII domain, for headers.
    header: str

    @property
    def smtputf8(self) -> bool:
        """Return whether the part before the @ needs RFC 6531."""
        return not self.wire.isascii()


def parse(field: str, values: Iterable[object], idna: IdnaEncode) -> list[Mailbox]:
    """Parse each value as exactly one address; None and "" are left out, as in Django.

    Raises LettermintInvalidMessage naming the field.
    """
    return [parse_one(field, value, idna) for value in values if value]


def parse_one(field: str, value: object, idna: IdnaEncode) -> Mailbox:
    """Parse one address; raise LettermintInvalidMessage naming the field."""
    if not isinstance(value, str | Address) and not is_lazy(value):
        raise _invalid(field, value, "give it as text")
    text = str(value)
    if _PLAIN.fullmatch(text) and len(text) <= MAX_LENGTH:
        return Mailbox(text, text, text)
    # Parsers silently repair line breaks: look before they do.
    if CONTROL.search(text) or _hides_controls(text):
        raise _invalid(field, text, "it has a line break or control character")
    text = text.strip()
    try:
        [address] = _parsed(text)
        # What a parser has left out would be lost, or hide something else.
        if not text.removesuffix(">").endswith("@" + address.domain):
            raise ValueError("something stands behind the address")
        wire = address.format_addr_spec(idna_encode=idna)
        header = text if address.domain.isascii() else address.format(idna_encode=idna)
    except (AnymailInvalidAddress, ValueError) as error:
        rule = "write one address as user@domain or Name <user@domain>"
        rule += f"; {_NEEDS_QUOTES}" * bool({*text} & {*",:"})
        raise _invalid(field, text, rule) from error
    if "=?" in wire or not _WIRE.fullmatch(wire) or len(wire.encode()) > MAX_LENGTH:
        rule = f"write user@domain with at most {MAX_LENGTH} octets (RFC 5321)"
        raise _invalid(field, text, rule)
    return Mailbox(address.addr_spec, wire, header)


def parse_header(field: str, text: str, idna: IdnaEncode) -> list[Mailbox]:
    """Parse the value of a header that holds any number of addresses."""
    try:
        addresses = _parsed(text)
    except (AnymailInvalidAddress, ValueError) as error:
        rule = "write addresses as user@domain or Name <user@domain>"
        raise _invalid(field, text, f"{rule}; {_NEEDS_QUOTES}") from error
    return [parse_one(field, str(address), idna) for address in addresses]


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[EmailAddress, ...]:
    # Parsers repair what is malformed, each in its own way.
    if not _MAILBOXES.fullmatch(
        _QUOTED_OR_COMMENT.sub(lambda found: "\0" if found[1] else " ", text)
    ):
        raise ValueError("not of the form that RFC 5322 gives mailboxes")
    return tuple(parse_address_list([text]))


def _hides_controls(text: str) -> bool:
    """Return whether encoded words in a name would be decoded into line breaks."""
    if "=?" not in text:
        return False
    try:
        return bool(CONTROL.search(str(make_header(decode_header(text)))))
    except (HeaderParseError, LookupError, UnicodeError):
        return False  # nobody can decode it


def _invalid(field: str, value: object, rule: str) -> LettermintInvalidMessage:
    return LettermintInvalidMessage(f"{field}: {shown(value)} is refused: {rule}")
