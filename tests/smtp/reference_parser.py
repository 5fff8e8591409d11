"""A second parser of SMTP replies, written another way, to compare ours with."""

from __future__ import annotations

from collections.abc import Sequence


def reply_code(lines: Sequence[bytes]) -> int | None:
    """Return the code of a reply given by its lines; None if they are not a reply."""
    codes = set()
    for number, line in enumerate(lines, 1):
        digits = [octet - 48 for octet in line[:3]]
        if len(digits) < 3 or digits[0] not in (2, 3, 4, 5) or max(digits) > 9:
            return None
        if min(digits) < 0:
            return None
        separator = line[3:4]
        if separator not in (b"", b" ", b"-"):
            return None
        if (separator == b"-") == (number == len(lines)):
            return None
        codes.add(100 * digits[0] + 10 * digits[1] + digits[2])
    return codes.pop() if len(codes) == 1 else None


def reply_codes(octets: bytes) -> list[int]:
    """Return the codes of the complete replies that octets begin with."""
    codes: list[int] = []
    reply: list[bytes] = []
    for line in octets.split(b"\n")[:-1]:
        reply.append(line[:-1] if line.endswith(b"\r") else line)
        if reply[-1][3:4] != b"-":
            code = reply_code(reply)
            if code is None:
                break
            codes.append(code)
            reply = []
    return codes
