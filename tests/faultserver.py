"""A scriptable SMTP server: real sockets, real TLS, and any fault at any step.

    with FaultServer([On("rcpt", match="bob@", do=reply(550, "5.1.1 no such user"))]) as server:
        backend = EmailBackend(**server.options())
        ...
        assert server.delivered == {"carol@example.org": 1}
        assert server.violations == []

`faults` holds the phases, selectors and actions that a script is made of. The protocol is
that of the relay in `django_lettermint.testing`.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, Self, cast

from django_lettermint.testing.idempotency import IdempotencyKeys
from django_lettermint.testing.server import SMTPServer
from django_lettermint.testing.session import (
    Reply,
    ServerConfig,
    ServerSession,
    SubmittedMessage,
)
from django_lettermint.testing.stream import ConnectionEnded, ServerStream
from tests.certificates import ca_file, server_context
from tests.faults import (
    Action,
    Answer,
    Moment,
    On,
    Phase,
    Play,
    accept_then,
    answer_of,
    drop,
    endless,
    gate,
    hang,
    normal,
    raw,
    reply,
    stall,
    trickle,
)

__all__ = [
    "CHALLENGE", "TOKEN", "Action", "Answer", "FaultServer", "On", "accept_then",
    "drop", "endless", "gate", "hang", "normal", "raw", "reply", "stall", "trickle",
]  # fmt: skip

NO_ANSWER = Answer(0, lambda _: None)

TOKEN = "lm_fault-server-token"
CHALLENGE = b"<1896.697170952@fault.test>"
FEATURES = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
    "SIZE 26214400",
)
#: Its ports, as the options of the backend name them.
SECURITY = {"implicit": "tls", "starttls": "starttls", None: "plaintext"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that the server took."""

    mail_from: str
    recipients: tuple[str, ...]
    content: bytes  #: without dot-stuffing and terminator
    key: str | None  #: the Idempotency-Key header
    connection: int
    parameters: str  #: what stood behind MAIL's path


class Login(NamedTuple):
    mechanism: str
    user: str
    ok: bool  #: user and secret were right, whatever a script made the server answer


class FaultServer:
    """Serve SMTP on a loopback address, and do at each step what the script says.

    `tls` is "implicit", "starttls" or None; `cert` one of `certificates.KINDS`; `rcvbuf` the
    size of the receive buffer in octets; `idempotency` makes the server honour
    Idempotency-Key. With `one_command_per_segment`, what comes behind a command in the same
    segment is lost.
    """

    def __init__(
        self,
        script: Iterable[On] = (),
        *,
        tls: str | None = "implicit",
        features: Iterable[str] = FEATURES,
        auth: Iterable[str] = ("PLAIN", "LOGIN"),
        user: str = "lettermint",
        cert: str = "good",
        idempotency: bool = False,
        rcvbuf: int | None = None,
        host: str = "127.0.0.1",
        one_command_per_segment: bool = False,
    ) -> None:
        #: The rules: the first match counts. They may be changed at any time.
        self.script = list(script)
        self.deliveries: list[Delivery] = []
        self.logins: list[Login] = []
        #: Each command line in order, as (connection, line).
        self.commands: list[tuple[int, bytes]] = []
        self.violations: list[str] = []
        #: MAIL commands so far.
        self.messages = 0
        #: Messages that were confirmed but not delivered again, by their key.
        self.replays = 0
        self.peak_connections = 0
        self.host = host
        self._drops_pipelined = one_command_per_segment
        self.idempotency = idempotency
        self.keys = IdempotencyKeys()
        mechanisms = tuple(auth)
        self.config = ServerConfig(
            context=server_context(cert),
            hostname="fault.test",
            features=tuple(features),
            mechanisms=mechanisms,
            username=user,
            requires_auth=bool(mechanisms),
            tokens=(TOKEN,),
            # Announced, but for the client to keep to.
            max_size=1 << 40,
            last_chunk_resets=False,
        )
        self._changed = threading.Condition(threading.RLock())
        self._used: Counter[On] = Counter()
        self._streams: dict[int, FaultStream] = {}
        self._received: dict[int, bytearray] = {}
        self._security = SECURITY[tls]
        self._server = SMTPServer(
            self._new_session,
            {self._security: 0},
            host=host,
            receive_buffer=rcvbuf,
            name="faultserver",
        )

    # Start and stop

    def __enter__(self) -> Self:
        self._server.listen()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse new connections, cut the open ones, and wait for all threads."""
        self.close_door()
        assert self._server.cut_connections(), "a connection does not end"

    def close_door(self) -> None:
        """Refuse new connections; the open ones stay."""
        self._server.close_door()

    def _new_session(
        self, sock: socket.socket, security: str, number: int
    ) -> ServerSession:
        stream = FaultStream(sock, number, drops_pipelined=self._drops_pipelined)
        with self._changed:
            self._streams[number] = stream
            self._received[number] = stream.received
            self.peak_connections = max(self.peak_connections, self.open_connections)
            self._changed.notify_all()
        return FaultSession(stream, security, number, self.config, self)

    # For the test

    @property
    def port(self) -> int:
        return self._server.ports[self._security]

    def options(self, **others: object) -> dict[str, object]:
        """Return the backend options that reach this server, and the others given."""
        return {
            "api_token": TOKEN,
            "host": self.host,
            "port": self.port,
            "security": self._security,
            "ca_file": ca_file(),
            "idempotency": self.idempotency,
            **others,
        }

    def act_on_all(self, action: Action) -> None:
        """Do this on every open connection, each of which waits for its client."""
        with self._changed:
            streams = list(self._streams.values())
        for stream in streams:
            stream.act(action(NO_ANSWER).play)

    def wait_for(self, condition: Callable[[], object], timeout: float = 5.0) -> bool:
        """Wait until a condition over this server's record holds; return whether it does."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout))

    # Records

    @property
    def connections(self) -> int:
        return self._server.accepted

    @property
    def delivered(self) -> Counter[str]:
        """How many messages each recipient got."""
        return Counter(
            address for each in list(self.deliveries) for address in each.recipients
        )

    @property
    def received(self) -> dict[int, bytes]:
        """All that each connection received, after TLS."""
        return {number: bytes(data) for number, data in list(self._received.items())}

    @property
    def open_connections(self) -> int:
        """How many connections neither side has closed."""
        with self._changed:
            return sum(not stream.left() for stream in self._streams.values())

    # For its sessions

    def note(self, change: Callable[[], object]) -> None:
        """Change the record and wake those who wait."""
        with self._changed:
            change()
            self._changed.notify_all()

    def forget(self, connection: int) -> None:
        self.note(lambda: self._streams.pop(connection))

    def begin_message(self) -> int:
        with self._changed:
            self.messages += 1
            self._changed.notify_all()
            return self.messages

    def action(
        self, moment: Moment, spent: Collection[On] = ()
    ) -> tuple[On | None, Action]:
        """Return the first rule for this moment, but none of those spent, and what it does."""
        with self._changed:
            for rule in self.script:
                left = rule.times is None or self._used[rule] < rule.times
                if left and rule not in spent and rule.fits(moment):
                    self._used[rule] += 1
                    return rule, rule.do
        return None, normal


class FaultSession(ServerSession):
    """A connection that answers as the script says, and notes violations of the protocol."""

    stream: FaultStream

    def __init__(
        self,
        stream: FaultStream,
        security: str,
        number: int,
        config: ServerConfig,
        server: FaultServer,
    ) -> None:
        super().__init__(stream, security, number, config)
        self.server = server
        self.message = 0  #: number of the last MAIL command over the server
        self.messages = 0  #: MAIL commands on this connection
        self.spent: set[On] = set()  #: "body" rules that have acted on this message
        self.answered = False  #: a script has answered within the content
        self.early = 0  #: octets of commands that came before the reply to a message
        self.behind_end = False  #: this command is one of those

    # The script

    def decide(self, phase: str, argument: bytes, answer: Answer) -> Answer:
        return self.server.action(self.moment(phase, argument))[1](answer)

    def moment(self, phase: str, argument: bytes, received: int = 0) -> Moment:
        return Moment(
            phase=cast("Phase", phase),
            connection=self.number,
            message=self.message,
            message_on_connection=self.messages,
            argument=argument.decode("utf-8", "replace"),
            received=received,
            behind_end=self.behind_end,
        )

    def respond(self, step: str, argument: bytes, reply: Reply) -> int:
        if step == "bdat" and self.answered:
            return 0
        answer = self.decide(step, argument, answer_of(reply))
        answer.play(self.stream)
        return answer.code

    def start_tls(self) -> None:
        handshake = super().start_tls
        answer = Answer(220, lambda _: handshake())
        self.decide("tls", b"", answer).play(self.stream)
        if not self.stream.secure:
            self.stream.pause()

    def content_progress(self, received: int) -> None:
        while True:
            moment = self.moment("body", b"", received)
            rule, action = self.server.action(moment, self.spent)
            if rule is None:
                return
            self.spent.add(rule)
            answer = action(NO_ANSWER)
            answer.play(self.stream)
            self.answered |= answer.code != 0

    def receive(self, message: SubmittedMessage, argument: bytes) -> None:
        """Take or refuse a message; a script that answered within its content has refused it."""
        if message.chunked:
            self.check_content(message.content, message.parameters, stuffed=False)
        if self.answered:
            return
        keys, key = self.server.keys, _key_of(message.content)
        own_key = key if self.server.idempotency else None
        repeated = keys.begin(own_key, message.content)
        answer = answer_of(repeated or Reply(250, "2.0.0 queued"))
        self.server.replays += answer.code == 250 and repeated is not None
        for phase in ("bdat", "dot") if message.chunked else ("dot",):
            answer = self.decide(phase, argument, answer)
        taken = answer.code // 100 == 2
        if repeated is None:
            if taken:
                self.deliver(message, key)
            # A message is in progress until its answer is on the way.
            self.stream.on_write = lambda: (
                keys.finish(own_key, Reply(250, "2.0.0 queued"))
                if taken
                else keys.release(own_key)
            )
        self.stream.more_input()
        self.early = len(self.stream.buffer)
        answer.play(self.stream)
        self.decide("idle", b"", NO_ANSWER).play(self.stream)

    def deliver(self, message: SubmittedMessage, key: str | None) -> None:
        delivery = Delivery(
            mail_from=message.sender,
            recipients=message.recipients,
            content=message.content,
            key=key,
            connection=self.number,
            parameters=b" ".join(
                b"=".join(filter(None, each)) for each in message.parameters.items()
            ).decode("latin-1"),
        )
        self.server.note(lambda: self.server.deliveries.append(delivery))

    # Records

    def command(self, verb: bytes, argument: bytes, line: bytes) -> None:
        entry = (self.number, line.rstrip(b"\r\n"))
        self.server.note(lambda: self.server.commands.append(entry))
        self.behind_end = self.early > 0
        self.early -= len(line)
        self.spent.clear()
        self.answered = False
        for violation in _in_line(verb, line):
            self.violation(violation)
        if verb != b"BDAT":
            self.look_behind(verb)
        if verb == b"MAIL":
            self.message = self.server.begin_message()
            self.messages += 1
        super().command(verb, argument, line)

    def content_read(self, wire: bytes | None) -> None:
        self.stream.drop_pipelined()
        self.look_behind(b"chunk" if wire is None else b"content")
        if wire is not None:
            parameters = self.transaction.parameters if self.transaction else {}
            self.check_content(wire, parameters, stuffed=True)

    def check_content(
        self, wire: bytes, parameters: Mapping[bytes, bytes], *, stuffed: bool
    ) -> None:
        eight_bit = parameters.get(b"BODY", b"").upper() == b"8BITMIME"
        for violation in _in_content(wire, stuffed=stuffed, eight_bit=eight_bit):
            self.violation(violation)

    def look_behind(self, what: bytes) -> None:
        """Note input that came before the reply to this."""
        if not self.stream.more_input():
            return
        if "PIPELINING" not in (self.announced or ()):
            self.violation(
                f"input behind {what[:20]!r}, and PIPELINING was not offered"
            )
        elif what in LAST_OF_GROUP:
            self.violation(
                f"input behind {what[:20]!r}, which must be the last of a group"
            )

    def violation(self, what: str) -> None:
        text = f"connection {self.number}: {what}"
        self.server.note(lambda: self.server.violations.append(text))

    def login_tried(self, mechanism: str, username: str, *, success: bool) -> None:
        login = Login(mechanism, username, success)
        self.server.note(lambda: self.server.logins.append(login))

    def challenge(self) -> bytes:
        return CHALLENGE

    def ended(self) -> None:
        self.stream.settle()
        # Before the socket is closed: a client that sees that must not be counted any more.
        self.server.forget(self.number)


#: Seconds after which a waiting session looks for something to do.
POLLING = 0.02
# The client has closed its side, even if unread input is still in front of that (Linux).
_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)


class FaultStream(ServerStream):
    """A socket used by its session's thread; other threads may only `act` and `cut`."""

    def __init__(
        self, sock: socket.socket, number: int, *, drops_pipelined: bool
    ) -> None:
        super().__init__(sock)
        self.number = number
        self.received = bytearray()
        #: Done before the next octets are written.
        self.on_write: Callable[[], None] = lambda: None
        self._drops_pipelined = drops_pipelined
        self._rst = False
        self._jobs: SimpleQueue[Play] = SimpleQueue()
        self._done = threading.Event()

    # For actions

    def write(self, data: bytes) -> None:
        self.settle()
        super().write(data)
        self.flush()

    def settle(self) -> None:
        on_write, self.on_write = self.on_write, lambda: None
        on_write()

    def pause(self, seconds: float | None = None) -> None:
        if self._poll(_HANGUP, seconds):
            raise ConnectionEnded

    def wait_for_input(self) -> None:
        if not self.buffer:
            self._poll(select.POLLIN, None)

    def wait_for(self, event: threading.Event) -> None:
        while not event.wait(POLLING):
            self.pause(0)

    def drop(self, *, rst: bool = False) -> None:
        self._rst = rst
        raise ConnectionEnded

    # For the session

    def receive(self) -> bytes:
        if not self._pending():
            self._poll(select.POLLIN, None)
        data = super().receive()
        self.received += data
        return data

    def read_line(self) -> bytes:
        line = super().read_line()
        self.drop_pipelined()
        return line

    def drop_pipelined(self) -> None:
        if self._drops_pipelined:
            self.buffer.clear()

    def more_input(self) -> bool:
        """Return whether the client has sent more than was read, without waiting."""
        # The end of input alone is no more input: it is left to the next read.
        if not self.buffer and (
            self._pending() or self._poll(select.POLLIN | _HANGUP, 0) == select.POLLIN
        ):
            with contextlib.suppress(ConnectionEnded):
                self.fill()
        return bool(self.buffer)

    def close(self) -> None:
        if self._rst:
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.sock.close()
            self.control.close()
        super().close()
        self._done.set()

    # For other threads

    def act(self, play: Play) -> None:
        """Have the session's thread do this while it waits for its client."""
        self._jobs.put(play)
        assert self._done.wait(5), f"connection {self.number} is too busy to act"
        self._done.clear()

    def left(self) -> bool:
        """Return whether the client has closed this connection, noticed or not."""
        poller = select.poll()
        poller.register(self.control, _HANGUP)
        return bool(poller.poll(0))

    # Internals

    def _pending(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def _poll(self, mask: int, seconds: float | None) -> int:
        """Return the socket's events, 0 when time is up; act meanwhile."""
        poller = select.poll()
        poller.register(self.sock, mask)
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        while True:
            left = max(0.0, until - time.monotonic())
            if ready := poller.poll(min(left, POLLING) * 1000):
                return ready[0][1]
            with contextlib.suppress(Empty):
                self._jobs.get_nowait()(self)
                self._done.set()
            if not left:
                return 0


#: RFC 2920 section 3.1, RFC 3207 section 4, RFC 4954 section 4.
LAST_OF_GROUP = frozenset(
    b"EHLO HELO DATA VRFY EXPN TURN QUIT NOOP STARTTLS AUTH".split()
)
#: RFC 5321 section 4.5.3.1.4, with the room that SIZE, BODY, SMTPUTF8 and AUTH add; RFC 4954 4.
_LIMITS = {b"MAIL": 1054, b"AUTH": 12288}
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


def _in_line(verb: bytes, line: bytes) -> Iterator[str]:
    """Yield the violations in a command line that the server does not refuse."""
    if _BARE.search(line):
        yield f"bare CR or LF in {line!r}"
    if b"\0" in line:
        yield f"NUL in {line!r}"
    if len(line) > _LIMITS.get(verb, 512):
        yield f"{verb!r} line of {len(line)} octets"


def _in_content(wire: bytes, *, stuffed: bool, eight_bit: bool) -> Iterator[str]:
    """Yield the violations in content as it came, without its terminator."""
    if _BARE.search(wire):
        yield "bare CR or LF in content"
    if b"\0" in wire:
        yield "NUL in content"
    if not eight_bit and not wire.isascii():
        yield "8-bit content without BODY=8BITMIME"
    lines = wire.split(b"\r\n")
    longest = max(len(line) - (stuffed and line.startswith(b".")) for line in lines)
    if longest > 998:
        yield f"content line of {longest} octets"
    if stuffed and re.search(rb"(?:\A|\r\n)\.(?!\.)", wire):
        yield "content line with an unstuffed dot"


def _key_of(content: bytes) -> str | None:
    """Return the Idempotency-Key in the header section."""
    header = content.partition(b"\r\n\r\n")[0]
    found = re.search(rb"(?im)^Idempotency-Key:[ \t]*(.*?)[ \t]*\r?$", header)
    return found[1].decode("latin-1") if found else None
