"""How bodies are encoded and all is written: the `email` package's hooks, set for speed.

The standard ones write bodies line by line and copy each part four times. The bytes are
the same; whatever takes more is left to them.
"""

from __future__ import annotations

import binascii
import random
import re
from email.contentmanager import ContentManager, raw_data_manager
from email.generator import BytesGenerator
from email.message import Message
from email.policy import EmailPolicy
from itertools import chain
from struct import Struct
from typing import Any

from .header_policy import FOLD_AT, FastPolicy, Policy, registry

#: What generators write: bytes, and views of bytes that are ready for the wire: short
#: lines that end in CRLF, no NUL.
Piece = bytes | memoryview

#: Line breaks that generators translate.
_NEWLINES = re.compile(r"\r\n|\r|\n")
#: Characters of a base64 line: as many as fit a policy's 78, in groups of four.
_BASE64_LINE = 76
_BASE64_LINES = Struct(f"{_BASE64_LINE}s" * 256)


def text_lines(text: str) -> bytes | None:
    """Return text as it stands on the wire, or None if it has to be encoded."""
    octets = text.encode()
    lines = octets.splitlines()
    if max(map(len, lines), default=0) > FOLD_AT or b"\0" in octets:
        return None
    return b"\r\n".join(lines) + b"\r\n"


def _base64_lines(data: bytes) -> bytes:
    encoded = binascii.b2a_base64(data, newline=False)
    end = len(encoded) // _BASE64_LINES.size * _BASE64_LINES.size
    bulk = chain.from_iterable(_BASE64_LINES.iter_unpack(memoryview(encoded)[:end]))
    starts = range(end, len(encoded), _BASE64_LINE)
    rest = [encoded[start : start + _BASE64_LINE] for start in starts]
    return b"\r\n".join([*bulk, *rest, b""])


class _Contents(ContentManager):
    """Sets most bodies at once instead of line by line, as what is written in the end."""

    def set_content(self, msg: Any, obj: Any, *args: Any, **kw: Any) -> None:
        lines: bytes | None = None
        encoding = ""
        if "cte" in kw:
            pass
        elif type(obj) is bytes:
            lines, encoding = _base64_lines(obj), "base64"
            obj = b""
        elif isinstance(obj, str) and kw.get("charset") == "utf-8":
            lines = text_lines(obj)
            if lines is not None:
                obj, encoding = "", "7bit" if lines.isascii() else "8bit"
        if lines is None:
            raw_data_manager.set_content(msg, obj, *args, **kw)
            return
        kw["cte"] = "7bit"
        raw_data_manager.set_content(msg, obj, *args, **kw)
        msg.replace_header("Content-Transfer-Encoding", encoding)
        msg.set_payload(memoryview(lines))


class _Buffer:
    """Takes what a generator writes, and copies none of it."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def write(self, data: Piece | _Buffer) -> None:
        if isinstance(data, _Buffer):
            self.pieces += data.pieces
        else:
            self.pieces.append(data)

    def getvalue(self) -> _Buffer:
        return self

    def split(self, separator: bytes) -> list[bytes]:
        # For the blocks of a delivery status.
        return b"".join(self.pieces).split(separator)


class BulkGenerator(BytesGenerator):
    """`BytesGenerator`, but line ends are translated in one go, or were before."""

    def _new_buffer(self) -> _Buffer:
        return _Buffer()

    def _handle_text(self, part: Message) -> None:
        payload = part._payload  # type: ignore[attr-defined]  # noqa: SLF001
        if isinstance(payload, memoryview):
            self._fp.write(payload)  # type: ignore[attr-defined]
        else:
            super()._handle_text(part)  # type: ignore[misc]

    _writeBody = _handle_text  # noqa: N815 - the standard library's name

    def _write_lines(self, lines: str) -> None:
        if "\r" in lines:
            lines = _NEWLINES.sub("\n", lines)
        self.write(lines.replace("\n", self._NL))  # type: ignore[attr-defined]


def flatten(part: Message, *, utf8: bool = False) -> list[Piece]:
    """Write a message with CRLF line ends; draws the boundaries that are missing."""
    for each in part.walk():
        multipart = each.is_multipart() and each.get_content_maintype() == "multipart"
        if multipart and not each.get_boundary():
            # Nineteen random digits need no search through what they separate.
            each.set_boundary(f"{'=' * 15}{random.randrange(10**19):019d}==")  # noqa: S311
    buffer = _Buffer()
    policy = part.policy
    if isinstance(policy, EmailPolicy) and not isinstance(policy, Policy):
        policy = UTF8 if utf8 else CAREFUL
    # A policy is copied to change its line end.
    linesep = None if policy.linesep == "\r\n" else "\r\n"
    generator = BulkGenerator(buffer, mangle_from_=False, policy=policy)
    generator.flatten(part, linesep=linesep)
    return buffer.pieces


CAREFUL = Policy(linesep="\r\n")
UTF8 = Policy(linesep="\r\n", utf8=True)
#: For messages that nobody but Django builds.
FAST = FastPolicy(linesep="\r\n", header_factory=registry, content_manager=_Contents())
