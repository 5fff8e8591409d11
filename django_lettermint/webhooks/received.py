"""Received mail whose headers can be read, whatever a stranger wrote into them.

Python's email package raises errors for some fields, Anymail for others, and both lose
the addresses of some senders. A receiver that only logs the sender must not fail.
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

# Possessive quantifiers keep the time linear; so does beginning at a word only.
_WORD = r"""[^\s<>()\[\]\\,;:"'@]"""
_ADDRESS = re.compile(rf"(?<!{_WORD})(?<!@){_WORD}++@{_WORD}++(?!@)")
_BEFORE_ADDRESS = re.compile(r"<\s*+(?:mailto:)?\Z", re.IGNORECASE)


class _Lenient(EmailPolicy):
    """Reads a field as text if it cannot be parsed; writes each field as it came."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """Return a header object, as unstructured text if it cannot be parsed."""
        for form in _forms(name, value):
            with suppress(Exception):  # the email package's bugs raise many classes
                header = super().header_fetch_parse(name, form)
                # The email package reads `[Shop] News <n@example.com>` as `<>`.
                if "@" in header or "@" not in value:
                    return header
        return _as_text(name, value)


def _forms(name: str, value: str) -> Iterator[str]:
    """Yield a field as it came, then the addresses that are found in it."""
    yield value
    if name.lower() in ADDRESS_FIELDS:
        yield ", ".join(map(str, addresses(value)))


LENIENT = _Lenient(refold_source="none")


class ReceivedMessage(AnymailInboundMessage):
    """Anymail's message, which also finds the addresses of malformed fields."""

    def get_address_header(self, header: str) -> list[EmailAddress]:
        """Return the addresses of a field; an empty list if there are none."""
        try:
            found: list[EmailAddress] = super().get_address_header(header)
        # ValueError: a line break in a name.
        except (AnymailInvalidAddress, ValueError):
            name = header.lower()
            values = [raw for key, raw in self.raw_items() if key.lower() == name]
            found = [each for raw in values for each in addresses(raw)]
        return found


def addresses(text: str) -> Iterator[EmailAddress]:
    """Yield what looks like an address; the text before its bracket is the name."""
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
