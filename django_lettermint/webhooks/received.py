"""Received mail whose headers can be read, whatever a stranger wrote into them.

Python's email package raises for some fields, Anymail for others, and some senders'
addresses get lost. A receiver that only logs the sender must not fail for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.headerregistry import HeaderRegistry
from email.policy import EmailPolicy
from typing import Any

from anymail.exceptions import AnymailInvalidAddress
from anymail.inbound import AnymailInboundMessage
from anymail.utils import EmailAddress

#: The fields that hold addresses, in lower case.
ADDRESS_FIELDS = frozenset(
    f"{resent}{name}"
    for resent in ("", "resent-")
    for name in ("from", "sender", "reply-to", "to", "cc", "bcc")
)
_as_text = HeaderRegistry(use_default_map=False)

# A match begins with a word and gives nothing back: long values take their time once.
_WORD = r"""[^\s<>()\[\]\\,;:"'@]"""
_ADDRESS = re.compile(rf"(?<!{_WORD})(?<!@){_WORD}++@{_WORD}++(?!@)")
_BEFORE_ADDRESS = re.compile(r"<\s*+(?:mailto:)?\Z", re.IGNORECASE)


class _Lenient(EmailPolicy):
    """Reads each field, as text where it cannot be parsed, and writes it as it came."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """Return a header object; its type is that of a text if nothing else fits."""
        for form in _forms(name, value):
            with suppress(Exception):  # the email package's own mistakes
                header = super().header_fetch_parse(name, form)
                # Of `[Shop] News <n@example.com>`, the email package leaves `<>`.
                if "@" in header or "@" not in value:
                    return header
        return _as_text(name, value)


def _forms(name: str, value: str) -> Iterator[str]:
    """Yield a field as it came, then what can be found in it."""
    yield value
    if name.lower() in ADDRESS_FIELDS:
        yield ", ".join(map(str, addresses(value)))


LENIENT = _Lenient(refold_source="none")


class ReceivedMessage(AnymailInboundMessage):
    """Anymail's message; its addresses are what can be found in odd fields, too."""

    def get_address_header(self, header: str) -> list[EmailAddress]:
        """Return the addresses of a field, none if there is nothing like one."""
        try:
            found: list[EmailAddress] = super().get_address_header(header)
        except (
            AnymailInvalidAddress,
            ValueError,
        ):  # the latter: a line break in a name
            name = header.lower()
            values = [raw for key, raw in self.raw_items() if key.lower() == name]
            found = [each for raw in values for each in addresses(raw)]
        return found


def addresses(text: str) -> Iterator[EmailAddress]:
    """Find what looks like an address; the name is what stands before its bracket."""
    end = 0
    for match in _ADDRESS.finditer(text):
        before, end = text[end : match.start()], match.end()
        bracket = _BEFORE_ADDRESS.search(before)
        name = before[: bracket.start()].strip(" \t<>,;\"'") if bracket else ""
        username, domain = match[0].split("@")
        yield EmailAddress(_decoded(name), username=username, domain=domain)


def _decoded(text: str) -> str:
    try:
        decoded = str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        decoded = text
    return " ".join(decoded.split())
