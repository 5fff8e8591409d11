"""Encoded words, which write text outside of ASCII in header fields (RFC 2047)."""

from __future__ import annotations

import re
from binascii import b2a_base64
from email.errors import HeaderParseError
from email.header import decode_header
from string import ascii_letters, digits

#: Characters of an encoded word.
MAX_WORD = 75
#: The fewest that hold any character.
SHORTEST_WORD = len("=?utf-8?q?=F0=9F=98=80?=")
_FRAME = len("=?utf-8?q??=")

# Section 5 (3): all that a word in a phrase may hold, so that one form does everywhere.
_SAFE = (ascii_letters + digits + "!*+-/").encode()
_QUOTED = [chr(octet) if octet in _SAFE else f"={octet:02X}" for octet in range(256)]
_QUOTED[ord(" ")] = "_"
_BLANK = {"_", b" "}

_WORD = r"=\?[!->@-~]+\?[BbQq]\?[!->@-~]*\?="
_WORDS = re.compile(rf"(?<!\S){_WORD}(?:[ \t]+{_WORD})*(?!\S)")


def encode(text: str, first: int = MAX_WORD) -> list[str]:
    """Encode text, blanks included; each word holds whole characters and decodes alone.

    The first word has at most `first` characters.
    """
    characters = [character.encode() for character in text]
    quoted = ["".join([_QUOTED[octet] for octet in each]) for each in characters]
    octets = sum(map(len, characters))
    if sum(map(len, quoted)) <= -(-octets // 3) * 4:
        return [
            f"=?utf-8?q?{''.join(quoted[start:end])}?="
            for start, end in _cuts(quoted, first - _FRAME, MAX_WORD - _FRAME)
        ]
    rooms = [(most - _FRAME) // 4 * 3 for most in (first, MAX_WORD)]
    chunks = (
        b"".join(characters[start:end]) for start, end in _cuts(characters, *rooms)
    )
    return [
        f"=?utf-8?b?{b2a_base64(each, newline=False).decode()}?=" for each in chunks
    ]


def _cuts(
    pieces: list[str] | list[bytes], first: int, room: int
) -> list[tuple[int, int]]:
    """Return from where to where pieces go together, as many as there is room for.

    Behind a blank if there is one: readers that add one between words exist (Python's).
    """
    cuts: list[tuple[int, int]] = []
    start = size = 0
    for position, piece in enumerate(pieces):
        size += len(piece)
        if size > (room if cuts else first):
            blanks = (
                at for at in range(position - 1, start, -1) if pieces[at] in _BLANK
            )
            end = next(blanks, position - 1) + 1
            cuts.append((start, end))
            start, size = end, sum(map(len, pieces[end : position + 1]))
    return [*cuts, (start, len(pieces))]


def decode(text: str) -> str:
    """Decode the encoded words in a text; raise ValueError if that is not possible."""
    return _WORDS.sub(_decoded, text) if "=?" in text else text


def _decoded(match: re.Match[str]) -> str:
    try:
        parts = decode_header(match[0])
        return "".join(octets.decode(charset) for octets, charset in parts)
    except (HeaderParseError, LookupError, ValueError) as error:
        raise ValueError("its RFC 2047 encoded words cannot be decoded") from error
