"""SMTP replies, parsed strictly (RFC 5321 section 4.2, RFC 3463)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: Octets; RFC 5321 asks for 512 a line, real servers send more. Beyond these a server
#: is broken or hostile.
MAX_LINE = 8 * 1024
MAX_REPLY = 64 * 1024
#: Lines of a reply.
MAX_LINES = 100
#: Characters of a server's text that go into errors and logs.
MAX_TEXT = 500

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")


class ProtocolError(OSError):
    """The server sent something that is not SMTP: client and server are out of step."""


class ServerClosing(ConnectionResetError):
    """The server announced that it closes the connection; `reply` says how."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"the server is closing: {reply}")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply; `lines` hold the text after the code, sanitised.

    The other fields are worked out once: a server sends few different replies, and each
    is looked at often.
    """

    code: int
    lines: tuple[str, ...] = ()
    #: The command succeeded (2yz).
    positive: bool = field(init=False, repr=False, compare=False)
    #: The command was refused (4yz, 5yz).
    negative: bool = field(init=False, repr=False, compare=False)
    #: The server closes the connection (Inbucket announces it by 221).
    closing: bool = field(init=False, repr=False, compare=False)
    #: The RFC 3463 code, if its class agrees with the reply code.
    enhanced_code: str | None = field(init=False, repr=False, compare=False)
    #: The refusal has the enhanced code X.4.2. It is about the next hop (RFC 3463
    #: section 3.5), but Amazon SES and Gmail also use it when they close an idle
    #: connection.
    bad_connection: bool = field(init=False, repr=False, compare=False)
    #: All lines as one, at most `MAX_TEXT` characters.
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        match = _ENHANCED.match(self.lines[0]) if self.lines else None
        agrees = match is not None and match[1][0] == str(self.code)[0]
        enhanced_code = match[1] if match and agrees else None
        negative = self.code >= 400
        for name, value in (
            ("positive", 200 <= self.code < 300),
            ("negative", negative),
            ("closing", self.code in (221, 421)),
            ("enhanced_code", enhanced_code),
            ("bad_connection", negative and (enhanced_code or "").endswith(".4.2")),
            ("text", " ".join(filter(None, self.lines))[:MAX_TEXT]),
        ):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


def parse(lines: tuple[bytes, ...]) -> Reply:
    """Make a reply of its lines (without line ends); raise ProtocolError."""
    texts = []
    code = b""
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"not an SMTP reply: {sanitise(line)[:80]!r}")
        if code and match[1] != code:
            raise ProtocolError(
                f"a reply that changes its code: {sanitise(code)}, {sanitise(match[1])}"
            )
        if (match[2] == b"-") is (number == len(lines)):
            raise ProtocolError(f"a reply cut off: {sanitise(line)[:80]!r}")
        code = match[1]
        texts.append(sanitise(match[3] or b""))
    return Reply(int(code), tuple(texts))


def sanitise(raw: bytes) -> str:
    """Decode a server's text so that it is safe in logs, terminals and headers.

    Tabs become blanks; other controls, line and paragraph separators and marks that
    turn the direction of writing become question marks.
    """
    text = raw.decode("utf-8", "replace").replace("\t", " ").strip()
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "?" for char in text)
