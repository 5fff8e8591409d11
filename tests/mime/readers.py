"""What programs that are not ours read in a message: Python's two ways, and Perl's."""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from email.utils import collapse_rfc2231_value, getaddresses
from pathlib import Path
from typing import Any

#: Display name and address of each entry.
Names = list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One part that holds content: of text its lines, else its octets."""

    kind: str
    name: str | None
    content: str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """What a reader shows of a message, or what its caller gave."""

    subject: str
    addresses: Mapping[str, Names]
    #: Free text of headers, by lower-case name.
    texts: Mapping[str, str]
    leaves: list[Leaf] = field(default_factory=list)


FIELDS = ("From", "To", "Cc", "Reply-To")


def lines(text: str) -> str:
    """Return text with its line ends as LF, and one at the end."""
    text = re.sub("\r\n|\r|\n", "\n", text)
    return text if text.endswith("\n") else text + "\n"


def content(kind: str, octets: bytes, charset: str) -> str | bytes:
    return lines(octets.decode(charset)) if kind.startswith("text/") else octets


def by_compat32(octets: bytes) -> Mail:
    """Read as programs do that decode headers themselves."""
    mail = message_from_bytes(octets)
    values = {
        name.lower(): re.sub("\r\n", "", str(value)) for name, value in mail.items()
    }
    return Mail(
        subject=decoded(values["subject"]),
        addresses={
            name: [
                (decoded(phrase), address)
                for phrase, address in getaddresses([values[name.lower()]])
            ]
            for name in FIELDS
            if name.lower() in values
        },
        texts={
            name: decoded(value)
            for name, value in values.items()
            if name.startswith("x-")
        },
        leaves=list(_leaves(mail)),
    )


def decoded(value: str) -> str:
    return str(make_header(decode_header(value)))


def by_default(octets: bytes) -> Mail:
    """Read as Python's newer interface does."""
    mail = message_from_bytes(octets, policy=policy.default)
    return Mail(
        subject=str(mail["Subject"]),
        addresses={
            name: [(each.display_name, each.addr_spec) for each in mail[name].addresses]
            for name in FIELDS
            if name in mail
        },
        texts={
            name.lower(): str(value)
            for name, value in mail.items()
            if name.lower().startswith("x-")
        },
        leaves=list(_leaves(mail)),
    )


def file_name(part: Message) -> str | None:
    """Return a file's name; get_filename() takes blanks and quotes at its ends away."""
    disposition: Any = part["Content-Disposition"]
    if hasattr(disposition, "params"):
        return disposition.params.get("filename")  # type: ignore[no-any-return]
    value = part.get_param("filename", header="content-disposition")
    return collapse_rfc2231_value(value) if isinstance(value, tuple) else value


def _leaves(part: Message) -> Iterator[Leaf]:
    kind = part.get_content_type()
    if kind.startswith("multipart/"):
        parts: Any = part.get_payload()
        for each in parts:
            yield from _leaves(each)
    elif kind.startswith("message/"):
        # Its octets are compared as they stand on the wire: writing changes them.
        yield Leaf(kind=kind, name=file_name(part), content=b"")
    else:
        octets = part.get_payload(decode=True)
        assert isinstance(octets, bytes)
        charset = str(part.get_content_charset("ascii"))
        yield Leaf(
            kind=kind, name=file_name(part), content=content(kind, octets, charset)
        )


class PerlReader:
    """Email::MIME in a process that reads message after message."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("reader.pl")
        self._process = subprocess.Popen(
            ["perl", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, octets: bytes) -> Mail:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(struct.pack(">I", len(octets)) + octets)
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        assert "error" not in found, found
        return Mail(
            subject=found["subject"],
            addresses={
                name: [(each["name"], each["address"]) for each in entries]
                for name, entries in found["addresses"].items()
                if entries
            },
            texts=found["texts"],
            leaves=list(self._leaves(found["body"])),
        )

    def _leaves(self, part: Mapping[str, Any]) -> Iterator[Leaf]:
        if "parts" in part:
            for each in part["parts"]:
                yield from self._leaves(each)
            return
        octets = base64.b64decode(part["content"])
        yield Leaf(
            kind=part["type"],
            name=part["name"],
            content=content(part["type"], octets, part["charset"] or "ascii"),
        )

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
