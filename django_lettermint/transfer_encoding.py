"""Content that any SMTP server takes: line ends, short lines, and 7 bit if need be."""

from __future__ import annotations

import email
import email.encoders
import email.policy

from . import mime
from .exceptions import LettermintInvalidMessage
from .extras import shown
from .headers import MAX_LINE

#: Headers keep their words and folds, if not each blank around them.
_AS_IT_IS = email.policy.compat32.clone(linesep="\r\n", max_line_length=0)
#: What get_payload() decodes.
_ENCODINGS = {
    "quoted-printable",
    "base64",
    "x-uuencode",
    "uuencode",
    "uue",
    "x-uue",
}


def with_crlf(content: bytes) -> bytes:
    """Make every CR, LF and CRLF a CRLF, and end with one (RFC 5321 section 2.3.8).

    A lone CR or LF could end the message early at one server and not at the next (SMTP
    smuggling).
    """
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        content = content.replace(b"\n", b"\r\n")
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def is_transportable(content: bytes) -> bool:
    """Return whether no line is too long and no octet is NUL."""
    if b"\0" in content:
        return False
    start = 0
    while start + MAX_LINE + 2 < len(content):
        end = content.rfind(b"\n", start, start + MAX_LINE + 2)
        if end < 0:
            return False
        start = end + 1
    return True


def check_lines(content: bytes) -> None:
    """Look for a header that no line can hold, among bodies that are encoded."""
    if is_transportable(content):
        return
    lines = content.split(b"\r\n")
    unfit = (len(line) > MAX_LINE or b"\0" in line for line in lines)
    until = list(unfit).index(True) + 1
    begins = (line for line in reversed(lines[:until]) if line[:1] not in b" \t")
    name = next(begins).partition(b":")[0].decode("ascii", "replace")
    raise LettermintInvalidMessage(
        f"header {shown(name)}: a line of it is longer than {MAX_LINE} octets or holds "
        "a NUL (RFC 5322 section 2.1.1): shorten it or add spaces"
    )


def encode_bodies(content: bytes) -> bytes:
    """Encode the bodies that are not 7-bit text in short lines."""
    whole = email.message_from_bytes(content, policy=_AS_IT_IS)
    for part in whole.walk():
        encoding = str(part.get("Content-Transfer-Encoding", "")).lower()
        if part.is_multipart():
            # RFC 2045 section 6.4: composite parts only name what their leaves need.
            if encoding in {"8bit", "binary"}:
                del part["Content-Transfer-Encoding"]
            continue
        body = part.get_payload(decode=True)
        assert isinstance(body, bytes)  # noqa: S101 - a leaf's payload, decoded
        raw = body
        if encoding in _ENCODINGS:
            raw = str(part.get_payload()).encode("utf-8", "surrogateescape")
        if raw.isascii() and is_transportable(raw):
            continue
        del part["Content-Transfer-Encoding"]
        part.set_payload(body)
        if part.get_content_maintype() == "text":
            email.encoders.encode_quopri(part)
        else:
            email.encoders.encode_base64(part)
    return with_crlf(b"".join(mime.flatten(whole)))
