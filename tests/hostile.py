"""Text that could break a message apart, and what is found in what was sent."""

from __future__ import annotations

import email
import re

HOSTILE = [
    "\n.\n",
    "\r.\r",
    "\r\n.\r\n",
    ".",
    "..\n.a\n",
    "a\rb",
    "a\nb",
    "\r",
    "\n",
    "\r\r\n",
    "\0",
    "x" * 5000,
    ".\r\n" + "ü" * 3000,
    "ü",
    "From me\n",
    "\x85\u2028\x0b\x0c\x1c",
    "--=\n",
    "tail without end",
]


def lines(text: str) -> list[str]:
    """Split as SMTP sees it; whether the last line has an end is not its business."""
    found = re.split("\r\n|\r|\n", text)
    return found[:-1] if found[-1] == "" and len(found) > 1 else found


def leaves(content: bytes) -> list[bytes]:
    """Return the decoded bodies that a parser of the standard library finds."""
    whole = email.message_from_bytes(content)
    return [
        payload
        for part in whole.walk()
        if isinstance(payload := part.get_payload(decode=True), bytes)
    ]


def text_lines(payload: bytes) -> list[str]:
    return lines(payload.decode())
