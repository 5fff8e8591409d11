"""An SMTP relay in memory whose every step is chosen by a script.

A `Script` answers each question with the choice that its prefix names, and with the
first one (the relay behaves) beyond it. `behaviours()` walks all scripts with up to so
many faults.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
    TLSFailed,
)
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState, Reply, Session
from django_lettermint.smtp.replies import ProtocolError


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a relay may do at each step; the first choice is that it accepts."""

    connect: tuple[str, ...] = ("accept",)
    command: tuple[str, ...] = ("accept",)
    #: At the end of a message, which may be delivered though no reply arrives.
    end: tuple[str, ...] = ("accept",)
    idle: tuple[str, ...] = ("accept",)


AT_COMMAND = ("accept", "450", "550", "421", "close", "silence", "garbage")
AT_END = (
    *("accept", "450", "550", "421 to the end", "close", "silence"),
    *("deliver and close", "deliver in silence", "deliver, then garbage"),
)
USUAL = Choices(command=AT_COMMAND, end=AT_END)
#: Refusals before the login is done, for now and for good, and losses that lead there.
HANDSHAKE = Choices(
    connect=(
        *("accept", "refused", "421 greeting", "554 greeting", "421 EHLO", "550 EHLO"),
        *("454 STARTTLS", "554 STARTTLS", "454 AUTH", "535 AUTH"),
    ),
    command=("accept", "close"),
    end=("accept", "450", "close", "deliver and close"),
    idle=("accept", "421", "close", "silence"),
)

FEATURES = {"PIPELINING": "", "8BITMIME": "", "SIZE": "26214400", "CHUNKING": ""}
_KEY = re.compile(rb"\AIdempotency-Key: (\S+)\r\n")


class Script:
    """Choices: those of the prefix, then always the first."""

    def __init__(self, prefix: tuple[int, ...] = ()) -> None:
        self._prefix = prefix
        self.taken: list[int] = []
        #: How many choices there were each time.
        self.options: list[int] = []
        #: The messages that met a fault, and what it was.
        self.faults: defaultdict[str, list[str]] = defaultdict(list)

    def choose(self, options: tuple[str, ...], message: str) -> str:
        position = len(self.taken)
        number = self._prefix[position] if position < len(self._prefix) else 0
        self.taken.append(number)
        self.options.append(len(options))
        if number:
            self.faults[message].append(options[number])
        return options[number]

    def __repr__(self) -> str:
        return f"Script({tuple(self.taken)}), faults: {dict(self.faults)}"


def behaviours(run: Callable[[Script], None], *, faults: int) -> int:
    """Run every script with up to so many faults; return how many there were."""
    prefixes: list[tuple[int, ...]] = [()]
    count = 0
    while prefixes:
        prefix = prefixes.pop()
        script = Script(prefix)
        run(script)
        count += 1
        if sum(map(bool, prefix)) == faults:
            continue
        for position in range(len(prefix), len(script.options)):
            before = tuple(script.taken[:position])
            prefixes += [
                (*before, number) for number in range(1, script.options[position])
            ]
    return count


@dataclass
class MemoryRelay:
    """The relay's side: what it took, and from how many connections."""

    script: Script
    knows_keys: bool
    choices: Choices = USUAL
    logins: int = 0
    streams: list[MemoryStream] = field(default_factory=list)
    delivered: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: The content under each key.
    keys: dict[bytes, bytes] = field(default_factory=dict)

    def connect(self, state: RelayState) -> Session:
        self.logins += 1
        choice = self.script.choose(self.choices.connect, "")
        if choice != "accept":
            raise refusal(choice)
        self.streams.append(MemoryStream(self))
        return Session(self.streams[-1], FEATURES, state)  # type: ignore[arg-type]

    def idle(self) -> None:
        """Choose what each connection meets while it is not used."""
        for stream in self.streams:
            if not stream.has_input():
                stream.meet(self.script.choose(self.choices.idle, ""))

    def deliver(self, message: str, content: bytes, recipients: list[str]) -> None:
        key = _KEY.match(content)
        if key and self.knows_keys:
            if key[1] in self.keys:
                assert self.keys[key[1]] == content, "a repeat has other octets"
                return
            self.keys[key[1]] = content
        for who in recipients:
            self.delivered[message, who] += 1


def refusal(choice: str) -> LettermintError:
    """Return the error of a connection that the relay refused at a step."""
    if choice == "535 AUTH":
        return AuthenticationFailed(choice).with_reply(535, "")
    if choice == "554 STARTTLS":
        return TLSFailed(choice)
    error = ConnectFailed(choice)
    code, _, step = choice.partition(" ")
    error.step = step or "TCP"
    error.phase = {"STARTTLS": Phase.TLS, "AUTH": Phase.AUTH}.get(step, Phase.CONNECT)
    return error.with_reply(int(code), "") if step else error


class MemoryStream:
    """One connection, with the methods that a Session uses of an SMTPStream."""

    def __init__(self, relay: MemoryRelay) -> None:
        self._relay = relay
        self._choose = relay.script.choose
        self._choices = relay.choices
        self._input = b""
        self._replies: list[Reply] = []
        self._closed = self._silent = False
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._in_data = False

    def write(
        self,
        data: bytes,
        until: float,
        *,
        stall: float = 0,
        stop_on_reply: bool = False,
    ) -> None:
        if self._closed:
            raise BrokenPipeError("closed")
        self._input += data
        while self._take():
            pass

    def read_reply(self, until: float) -> Reply:
        if self._replies:
            reply = self._replies.pop(0)
            if not reply.code:
                raise ProtocolError("not an SMTP reply")
            return reply
        if self._closed:
            raise ConnectionResetError("closed")
        assert self._silent, "the client waits for a reply that is not due"
        raise TimeoutError("timed out")

    def has_input(self) -> bool:
        return bool(self._replies) or self._closed

    def close(self) -> None:
        self._closed = True

    def _take(self) -> bool:
        """Take one command, or one content, if it is complete."""
        if self._closed or self._silent:
            return False
        if self._in_data:
            content, found, rest = self._input.partition(b"\r\n.\r\n")
            if found:
                self._input, self._in_data = rest, False
                self._end((content + b"\r\n").replace(b"\r\n..", b"\r\n."))
            return bool(found)
        line, found, rest = self._input.partition(b"\r\n")
        if not found:
            return False
        verb, _, argument = line.decode().partition(" ")
        if verb == "BDAT":
            size = int(argument.split()[0])
            if len(rest) < size:
                return False
            self._input = rest[size:]
            self._end(rest[:size])
        else:
            self._input = rest
            self._command(verb, argument)
        return True

    def _command(self, verb: str, argument: str) -> None:
        if verb == "RSET":
            self._reset()
            self._reply(250)
            return
        address = argument.partition("<")[2].partition(">")[0]
        message = self._sender or address
        if not self._in_order(verb):
            self._reply(503)
            return
        choice = self._choose(self._choices.command, message)
        if choice in ("accept", "garbage"):
            if verb == "MAIL":
                self._sender = address
            elif verb == "RCPT":
                self._recipients.append(address)
            self._in_data = verb == "DATA"
        if self.meet(choice):
            self._reply(354 if verb == "DATA" else 250)

    def _in_order(self, verb: str) -> bool:
        if verb == "MAIL":
            return self._sender is None
        if verb == "RCPT":
            return self._sender is not None
        return bool(self._recipients)

    def _end(self, content: bytes) -> None:
        if not self._recipients:
            self._reset()
            self._reply(503)
            return
        message = self._sender or ""
        choice = self._choose(self._choices.end, message)
        if choice.startswith(("accept", "deliver")):
            self._relay.deliver(message, content, self._recipients)
        if self.meet(choice):
            self._reply(250)
        self._reset()

    def meet(self, choice: str) -> bool:
        """Do what was chosen; return whether the client gets the usual reply."""
        if choice[0] in "45":
            self._reply(int(choice[:3]), choice[4:])
        elif choice.endswith("garbage"):
            self._reply(0)
        self._closed = choice.startswith("421") or choice.endswith("close")
        self._silent = choice.endswith("silence")
        return choice == "accept"

    def _reply(self, code: int, text: str = "") -> None:
        self._replies.append(Reply(code, (text,)))

    def _reset(self) -> None:
        self._sender, self._recipients = None, []
