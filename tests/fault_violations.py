"""What a client may not do, looked for in the bytes it sent."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

#: RFC 2920 section 3.1, RFC 3207 section 4, RFC 4954 section 4.
LAST_OF_GROUP = frozenset(
    (
        b"EHLO",
        b"HELO",
        b"DATA",
        b"VRFY",
        b"EXPN",
        b"TURN",
        b"QUIT",
        b"NOOP",
        b"STARTTLS",
        b"AUTH",
    )
)

#: RFC 5321 section 4.5.3.1.4, with the room that SIZE, BODY, SMTPUTF8 and AUTH add; RFC 4954 4.
COMMAND_LIMITS = {b"MAIL": 1054, b"AUTH": 12288}

_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_PARAMETERS = {
    b"SIZE": "SIZE",
    b"BODY": "8BITMIME",
    b"SMTPUTF8": "SMTPUTF8",
    b"AUTH": "AUTH",
}


def in_line(
    line: bytes, verb: bytes, announced: Collection[str], *, smtputf8: bool
) -> Iterator[str]:
    """Yield what is wrong with a command line, its line end included."""
    if _BARE.search(line):
        yield f"bare CR or LF in {line!r}"
    if b"\0" in line:
        yield f"NUL in {line!r}"
    if len(line) > COMMAND_LIMITS.get(verb, 512):
        yield f"{verb!r} line of {len(line)} octets"
    parameters = in_mail(line) if verb == b"MAIL" else ()
    if not line.isascii() and not (smtputf8 or b"SMTPUTF8" in parameters):
        yield f"8-bit command without SMTPUTF8: {line!r}"
    for parameter in parameters:
        if _PARAMETERS.get(parameter) not in announced:
            yield f"parameter {parameter!r} was not offered"


def in_mail(line: bytes) -> list[bytes]:
    """Return the names of the parameters behind the path."""
    behind = line.rpartition(b">")[2]
    return [word.partition(b"=")[0].upper() for word in behind.split()]


def in_content(wire: bytes, *, stuffed: bool, eight_bit: bool) -> Iterator[str]:
    """Yield what is wrong with message content as it came, without its terminator."""
    if _BARE.search(wire):
        yield "bare CR or LF in content"
    if b"\0" in wire:
        yield "NUL in content"
    if not eight_bit and not wire.isascii():
        yield "8-bit content without BODY=8BITMIME"
    lines = wire.split(b"\r\n")
    longest = max(len(line) - (stuffed and line.startswith(b".")) for line in lines)
    if longest > 998:
        yield f"content line of {longest} octets"
    if stuffed and re.search(rb"(?:\A|\r\n)\.(?!\.)", wire):
        yield "content line with an unstuffed dot"
