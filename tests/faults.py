"""Rules (`On`) and actions, which fault scripts are made of.

An action is a function that takes the answer of the server and returns the one to give
instead. Any function can be an action: one that returns its argument changes nothing.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from django_lettermint.testing.session import Reply

if TYPE_CHECKING:
    from tests.faultserver import FaultStream

Phase = Literal[
    "banner", "ehlo", "helo", "starttls", "tls", "auth", "auth_cont", "mail", "rcpt",
    "data", "body", "bdat", "dot", "idle", "rset", "noop", "vrfy", "quit", "unknown",
]  # fmt: skip


#: What an answer does to its connection; a call ends the session of a lost client.
Play = Callable[["FaultStream"], None]


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


def chain(*actions: Action) -> Action:
    """Do one after the other; the last one decides what the server does."""

    def act(answer: Answer) -> Answer:
        answers = [action(answer) for action in actions]

        def play(wire: FaultStream) -> None:
            for each in answers:
                each.play(wire)

        return Answer(answers[-1].code, play)

    return act


def reply(code: int, text: str = "scripted", *, close: bool = False) -> Action:
    """Give this answer; each line of the text becomes a line of the reply."""
    return _perhaps_closing(answer_of(Reply(code, text)), close=close)


def raw(data: bytes, *, close: bool = False) -> Action:
    """Write these bytes instead of an answer; the state of the session stays."""
    return _perhaps_closing(Answer(0, lambda wire: wire.write(data)), close=close)


def drop(*, rst: bool = False, after: bool = False, deliver: bool = False) -> Action:
    """Close at once, `after` the normal answer, or (`deliver`) accepting without a reply."""

    def act(answer: Answer) -> Answer:
        def play(wire: FaultStream) -> None:
            if after:
                answer.play(wire)
            wire.drop(rst=rst)

        return Answer(answer.code if after or deliver else 0, play)

    return act


def hang() -> Action:
    """Write and read nothing until the client leaves or the server stops."""
    return _only(lambda wire: wire.pause())


def stall(seconds: float, then: Action = normal) -> Action:
    """Wait, reading nothing, and then go on."""
    return chain(_only(lambda wire: wire.pause(seconds)), then)


def gate(release: threading.Event, reached: threading.Event | None = None) -> Action:
    """Set `reached`, wait until the test sets `release`, and go on."""

    def wait(wire: FaultStream) -> None:
        if reached is not None:
            reached.set()
        wire.wait_for(release)

    return chain(_only(wait), normal)


def once_spoken_to(then: Action) -> Action:
    """Wait for input; at "tls", the client has begun its handshake then."""
    return chain(_only(lambda wire: wire.wait_for_input()), then)


def accept_then(action: Action) -> Action:
    """Take the command (at "dot": deliver the message), but answer as the action does."""
    return lambda answer: replace(action(answer), code=answer.code)


def sometimes(dice: random.Random, chance: float, *actions: Action) -> Action:
    """Take one of the actions with this probability; else answer normally.

    What the server itself refuses, it refuses.
    """
    lock = threading.Lock()

    def act(answer: Answer) -> Answer:
        with lock:
            happens = dice.random() < chance
            action = dice.choice(actions)
        return action(answer) if happens and answer.code < 400 else answer

    return act


def trickle(data: bytes, interval: float) -> Action:
    """Send the bytes one by one, this many seconds apart."""

    def play(wire: FaultStream) -> None:
        for byte in data:
            wire.write(bytes((byte,)))
            wire.pause(interval)

    return _only(play)


def endless(line: bytes) -> Action:
    """Send the line again and again until the client leaves or the server stops."""

    def play(wire: FaultStream) -> None:
        while True:
            wire.write(line)

    return _only(play)


def _only(play: Play) -> Action:
    return lambda _: Answer(0, play)


def _perhaps_closing(answer: Answer, *, close: bool) -> Action:
    def play(wire: FaultStream) -> None:
        answer.play(wire)
        if close:
            wire.drop()

    return lambda _: replace(answer, play=play)
