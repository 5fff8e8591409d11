"""Rules (`On`) and actions, which fault scripts are made of.

An action is a function that takes the answer of the server and returns the one to give
instead. Any function can be an action: one that returns its argument changes nothing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, Protocol, get_args

from django_lettermint.testing.session import Reply

Phase = Literal[
    "banner", "ehlo", "helo", "starttls", "tls", "auth", "auth_cont", "mail", "rcpt",
    "data", "body", "bdat", "dot", "idle", "rset", "noop", "vrfy", "quit", "unknown",
]  # fmt: skip


class Wire(Protocol):
    """What an answer can do to its connection; a call ends the session of a lost client."""

    number: int  #: of the connection

    def write(self, data: bytes) -> None: ...

    def write_under_tls(self, data: bytes) -> None: ...

    def pause(self, seconds: float | None = None) -> None: ...

    def wait_for_input(self) -> None: ...

    def wait_for(self, event: threading.Event) -> None: ...

    def drop(self, *, rst: bool = False) -> None: ...


Play = Callable[[Wire], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a command, and what the server writes.

    The server acts on the code: 2xx at "dot" delivers the message, 0 changes nothing.
    """

    code: int
    play: Play


Action = Callable[[Answer], Answer]


def answer_of(given: Reply) -> Answer:
    return Answer(given.code, lambda wire: wire.write(given.octets))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The state of a session when it looks for a rule."""

    phase: Phase
    connection: int
    message: int
    message_on_connection: int
    argument: str
    received: int
    behind_end: bool


@dataclass(slots=True, eq=False)
class On:
    """A rule: at `phase`, if the selectors match, act so instead of answering normally.

    `message` counts MAIL commands: over the server, or on one connection if `connection` is
    given. `match` is searched in the command's argument, ignoring case. `times` limits how
    often the rule acts; the first rule that fits wins. "body" rules act once a message,
    behind `after_bytes`. With `behind_end`, only commands that came before the reply to a
    message fit.
    """

    phase: Phase
    do: Action
    _: KW_ONLY
    connection: int | None = None
    message: int | None = None
    match: str | None = None
    times: int | None = None
    after_bytes: int = 0
    behind_end: bool = False

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise ValueError(
                f"phase {self.phase!r} is unknown: choose from {get_args(Phase)}"
            )

    def fits(self, moment: Moment) -> bool:
        """Return whether the selectors match; `times` does not count."""
        message = (
            moment.message if self.connection is None else moment.message_on_connection
        )
        return (
            self.phase == moment.phase
            and self.connection in (None, moment.connection)
            and self.message in (None, message)
            and self.after_bytes <= moment.received
            and (moment.behind_end or not self.behind_end)
            and (
                self.match is None
                or bool(re.search(self.match, moment.argument, re.IGNORECASE))
            )
        )


def normal(answer: Answer) -> Answer:
    return answer


def reply(code: int, text: str = "scripted", *, close: bool = False) -> Action:
    """Give this answer; each line of the text becomes a line of the reply."""
    answer = answer_of(Reply(code, text))
    return lambda _: _closing(answer) if close else answer


def raw(data: bytes, *, close: bool = False) -> Action:
    """Write these bytes instead of an answer; the state of the session stays."""
    answer = Answer(0, lambda wire: wire.write(data))
    return lambda _: _closing(answer) if close else answer


def in_clear(data: bytes, then: Action = normal) -> Action:
    """Write these bytes below TLS, then go on; at "tls": before the handshake."""
    return _after(lambda wire: wire.write_under_tls(data), then)


def drop(*, rst: bool = False, after: bool = False, deliver: bool = False) -> Action:
    """Close at once, `after` the normal answer, or (`deliver`) accepting without a reply."""

    def act(answer: Answer) -> Answer:
        if after:
            return _closing(answer, rst=rst)
        return Answer(answer.code if deliver else 0, lambda wire: wire.drop(rst=rst))

    return act


def hang() -> Action:
    """Write and read nothing until the client leaves or the server stops."""
    return lambda _: Answer(0, lambda wire: wire.pause())


def stall(seconds: float, then: Action = normal) -> Action:
    """Wait, reading nothing, and then go on."""
    return _after(lambda wire: wire.pause(seconds), then)


def gate(
    release: threading.Event,
    reached: threading.Event | None = None,
    then: Action = normal,
) -> Action:
    """Set `reached`, and wait until the test sets `release`."""

    def wait(wire: Wire) -> None:
        if reached is not None:
            reached.set()
        wire.wait_for(release)

    return _after(wait, then)


def once_spoken_to(then: Action) -> Action:
    """Wait for input; at "tls", the client has begun its handshake then."""
    return _after(lambda wire: wire.wait_for_input(), then)


def accept_then(action: Action) -> Action:
    """Take the command (at "dot": deliver the message), but answer as the action does."""
    return lambda answer: replace(action(answer), code=answer.code)


def trickle(data: bytes, interval: float) -> Action:
    """Send the bytes one by one, this many seconds apart."""

    def play(wire: Wire) -> None:
        for byte in data:
            wire.write(bytes((byte,)))
            wire.pause(interval)

    return lambda _: Answer(0, play)


def endless(line: bytes) -> Action:
    """Send the line again and again until the client leaves or the server stops."""

    def play(wire: Wire) -> None:
        while True:
            wire.write(line)

    return lambda _: Answer(0, play)


def inject(data: bytes, *, split: bool = False) -> Action:
    """Send plaintext with the reply to STARTTLS, or (`split`) once the client starts TLS."""
    ready = Reply(220, "2.0.0 Ready to start TLS").octets

    def play(wire: Wire) -> None:
        wire.write(ready if split else ready + data)
        if split:
            wire.wait_for_input()
            wire.write(data)

    return lambda answer: Answer(answer.code, play)


def garble() -> Action:
    """Send an invalid TLS record."""
    return in_clear(b"\x17\x03\x03\x00\x20" + b"?" * 32, lambda _: _NOTHING)


_NOTHING = Answer(0, lambda _: None)


def _closing(answer: Answer, *, rst: bool = False) -> Answer:
    def play(wire: Wire) -> None:
        answer.play(wire)
        wire.drop(rst=rst)

    return Answer(answer.code, play)


def _after(first: Play, then: Action) -> Action:
    def act(answer: Answer) -> Answer:
        late = then(answer)

        def play(wire: Wire) -> None:
            first(wire)
            late.play(wire)

        return Answer(late.code, play)

    return act
