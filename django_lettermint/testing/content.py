"""Take a message's content off the wire: after DATA, or as one chunk of BDAT."""

from __future__ import annotations

import asyncio

_END = b"\r\n.\r\n"
#: Octets of a line without its CRLF (RFC 5321 section 4.5.3.1.6).
_MAX_LINE = 998


async def read_dotted(reader: asyncio.StreamReader, max_size: int) -> bytes | None:
    """Read up to the lone dot and undo dot-stuffing; None for more than `max_size` octets."""
    pieces: list[bytes] = []
    size = 0
    # The line end of the DATA command counts: the lone dot may be the first line.
    tail = b"\r\n"
    while not tail.endswith(_END):
        # Almost as quick as looking for the whole end, which would miss one whose first
        # CRLF was read as the end of the line before.
        try:
            piece = await reader.readuntil(b".\r\n")
        except asyncio.LimitOverrunError as overrun:
            piece = await reader.readexactly(overrun.consumed)
        tail = (tail + piece[-5:])[-5:]
        size += len(piece)
        # Dot-stuffing at most doubles a message; what is longer need not be kept.
        if size <= 2 * max_size + 3:
            pieces.append(piece)
    if size > 2 * max_size + 3:
        return None
    content = b"".join(pieces)[:-3].removeprefix(b".").replace(b"\r\n.", b"\r\n")
    return content if len(content) <= max_size else None


async def read_chunk(
    reader: asyncio.StreamReader, size: int, max_size: int
) -> bytes | None:
    """Read `size` octets; None, with the octets thrown away, if they exceed `max_size`."""
    if size <= max_size:
        return await reader.readexactly(size)
    while size:
        size -= len(await reader.readexactly(min(size, 65536)))
    return None


def has_long_line(content: bytes) -> bool:
    return max(map(len, content.split(b"\r\n"))) > _MAX_LINE
