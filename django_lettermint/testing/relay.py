"""A local SMTP relay that behaves as Lettermint documents."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .certificates import Certificates
from .parsed_headers import ParsedHeaders, parse_headers
from .records import ReceivedMessage, Refusal
from .server import SMTPServer
from .session import (
    Refused,
    Reply,
    ServerConfig,
    ServerSession,
    SubmittedMessage,
    Transaction,
)
from .state import RelayState
from .stream import ConnectionEnded, ServerStream
from .webhooks import Webhooks

if TYPE_CHECKING:
    from .records import Logins, Statistics

_KEYWORDS = frozenset(
    {
        *("8BITMIME", "AUTH", "CHUNKING", "ENHANCEDSTATUSCODES", "LIMITS"),
        *("PIPELINING", "SIZE", "SMTPUTF8", "STARTTLS"),
    }
)
#: The steps whose refusals are kept, and their commands.
_REFUSALS = {"auth": "AUTH", "mail": "MAIL", "rcpt": "RCPT", "dot": "DATA"}
_MAX_RECIPIENTS = 50
#: Octets of a line without its CRLF (RFC 5321 section 4.5.3.1.6).
_MAX_LINE = 998
#: Seconds that connections and subscriptions may take to end.
_PATIENCE = 5.0


class Relay:
    """A real server on 127.0.0.1, with one port for implicit TLS and one for STARTTLS.

        with Relay() as relay, override_settings(ANYMAIL=relay.settings()):
            send_mail(...)
            (message,) = relay.messages

    It reads messages and enforces limits as Lettermint's documentation says. Where the
    documentation is silent, the relay chooses:

    - Replies: 535 5.7.8 for a wrong token, 530 5.7.0 for anything before TLS or AUTH,
      452 4.5.3 for the 51st recipient, 552 5.3.4 above 25 MB (26,214,400 octets, in SIZE
      or in the content), 550 5.6.0 after the content for a header that breaks
      a rule, 250 2.0.0 with an id of the relay for a message that is accepted.
    - Any route slug is taken: letters, digits, `_` and `-`, at most 255.
    - A header that occurs twice is refused, as is a metadata header without a key. One
      whose key has a blank in it is no header line, and is ignored. X-Tag next to
      X-LM-Tag is not looked at. Empty metadata values are taken.
    - Header values are unfolded and RFC 2047 words decoded.
    - All its tokens are of one project, which idempotency keys belong to. They are kept
      for the life of the relay, with a hash of the content; recipients do not count. Same
      key and content: the first reply again, nothing delivered. Other content: 554 5.5.0.
      First one still in progress: 451 4.5.0. A refused message uses up no key.
    - A complete message is worked on to the end, even if its client goes away meanwhile.
    - EHLO offers PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES and AUTH, not
      CHUNKING. BDAT LAST ends its transaction even when it is refused.
    - Lines above 998 octets are refused with 500, bare CR and LF are taken as they are.
    - No suppression list, no sender verification, no limit of rate or messages.
    """

    def __init__(
        self,
        token: str = "lm_test_token",  # noqa: S107 - no secret
        *,
        other_tokens: Sequence[str] = (),
        chunking: bool = False,
        without: Collection[str] = (),
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN", "CRAM-MD5"),
        limits: str = "",
        max_size: int = 25 * 1024 * 1024,
        idle_timeout: float = 300.0,
        reply_delay: float = 0.0,
        keep_messages: bool = True,
        ports: Mapping[str, int] | None = None,
        ca_folder: str | Path | None = None,
    ) -> None:
        """Prepare a relay; nothing listens before start().

        `without` names EHLO keywords to leave out, `limits` are parameters for the LIMITS
        keyword (RFC 9422), `max_size` is in octets, `idle_timeout` in seconds,
        `reply_delay` in seconds before each final reply, and `keep_messages=False` counts
        messages without keeping them. `ports` has the port, or 0 for any, for each of
        "tls", "starttls" and "plaintext" that is served, by default the first two.
        `ca_folder` keeps the certificate authority, so that it is the same at each start.
        Raises ValueError for a keyword or port that does not exist.
        """
        unknown = set(without) - _KEYWORDS
        if unknown:
            raise ValueError(
                f"without: {', '.join(sorted(unknown))}: no such EHLO keyword."
            )
        ports = dict(ports or {"tls": 0, "starttls": 0})
        for port in ports.values():
            if not 0 <= port <= 65535:
                raise ValueError(f"ports: {port} is not a port: give 0 to 65535.")
        offered = {
            "PIPELINING": "PIPELINING",
            "SIZE": f"SIZE {max_size}",
            "8BITMIME": "8BITMIME",
            "SMTPUTF8": "SMTPUTF8",
            "ENHANCEDSTATUSCODES": "ENHANCEDSTATUSCODES",
        }
        if chunking:
            offered["CHUNKING"] = "CHUNKING"
        if limits:
            offered["LIMITS"] = f"LIMITS {limits}"
        self.token = token
        self._certificates = Certificates(ca_folder)
        self._config = ServerConfig(
            context=self._certificates.context,
            features=tuple(
                line for keyword, line in offered.items() if keyword not in without
            ),
            starttls="STARTTLS" not in without,
            mechanisms=() if "AUTH" in without else tuple(mechanisms),
            tokens=(token, *other_tokens),
            max_size=max_size,
        )
        self._idle_timeout = idle_timeout
        self._state = RelayState(reply_delay=reply_delay, keep_messages=keep_messages)
        self._server = SMTPServer(self._new_session, ports, name="lettermint-relay")
        #: Webhooks for what it received: `post()` and `subscribe()`.
        self.webhooks = Webhooks(self)
        self._running = False

    def _new_session(
        self, sock: socket.socket, security: str, number: int
    ) -> RelaySession:
        state = self._state
        stream = ServerStream(
            sock,
            timeout=self._idle_timeout,
            on_round_trip=lambda: state.add(round_trips=1),
        )
        return RelaySession(stream, security, number, self._config, state)

    # Start and stop

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a stop() on the same ports as before.

        Raises RuntimeError if it is running, OSError for a port or `ca_folder` that cannot be
        used.
        """
        if self._running:
            raise RuntimeError("The relay is running already.")
        self._state.stopping.clear()
        self._certificates.write()
        try:
            self._server.listen()
        except BaseException:  # also if interrupted: leave no folder behind
            self._certificates.remove()
            raise
        self._running = True

    def stop(self) -> None:
        """Close everything; messages and statistics stay readable."""
        self._state.stopping.set()
        self._server.close_door()
        self._server.cut_connections(_PATIENCE)
        self.webhooks.stop(_PATIENCE)
        self._certificates.remove()
        self._running = False

    def drop_connections(self) -> None:
        """Cut every connection without a reply; new ones are accepted."""
        self._check_running()
        self._server.cut_connections()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse and cut all connections within the block, and listen again after it."""
        self._check_running()
        self._server.close_door()
        self._server.cut_connections()
        try:
            yield
        finally:
            # It may have been stopped within the block.
            if self._running:
                self._server.listen()

    def _check_running(self) -> None:
        if not self._running:
            raise RuntimeError("The relay is not running: call start() or use `with`.")

    # Options of the backend

    def port(self, security: str) -> int:
        """Return the port for "tls", "starttls" or "plaintext"."""
        return self._server.ports[security]

    @property
    def ca_file(self) -> str:
        """The path of the certificate to trust; removed by stop()."""
        return self._certificates.ca_file

    def options(self, security: str = "tls", **overrides: object) -> dict[str, object]:
        """Return the options with which the backend reaches this relay."""
        trusted = {} if security == "plaintext" else {"ca_file": self.ca_file}
        return {
            "api_token": self.token,
            "host": "127.0.0.1",
            "port": self.port(security),
            "security": security,
            **trusted,
            "idempotency": True,
        } | overrides

    def settings(self, security: str = "tls", **overrides: object) -> dict[str, object]:
        """Return the same as options() for the setting ANYMAIL, or as bare settings."""
        options = self.options(security, **overrides)
        return {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}

    # Records

    @property
    def messages(self) -> list[ReceivedMessage]:
        """The messages delivered since the last clear(), in order."""
        with self._state.changed:
            return list(self._state.messages)

    @property
    def refusals(self) -> list[Refusal]:
        """What was refused since the last clear(), in order."""
        with self._state.changed:
            return list(self._state.refusals)

    def add_listener(
        self, listener: Callable[[ReceivedMessage | Refusal], None]
    ) -> None:
        """Call `listener` with each message and refusal from now on.

        Its record is in `messages` or `refusals` by then, and its reply not yet sent. The
        call comes from the thread of the connection, so it must be quick and not raise.
        """
        self._state.listeners.append(listener)

    def remove_listener(
        self, listener: Callable[[ReceivedMessage | Refusal], None]
    ) -> None:
        """Stop calling `listener`."""
        self._state.listeners.remove(listener)

    @property
    def logins(self) -> Logins:
        """The logins tried so far."""
        return self._state.logins

    @property
    def statistics(self) -> Statistics:
        """The counters at this moment."""
        return self._state.statistics()

    def clear(self) -> None:
        """Forget messages and refusals; counters and idempotency keys stay."""
        self._state.clear()

    def wait_for(self, count: int, timeout: float = 5.0) -> list[ReceivedMessage]:
        """Return the messages as soon as there are `count`; raises TimeoutError."""
        self.wait_until(lambda _: len(self._state.messages) >= count, timeout)
        return self.messages

    def wait_until(
        self, true: Callable[[Statistics], bool], timeout: float = 5.0
    ) -> Statistics:
        """Wait until the statistics satisfy `true`; raises TimeoutError.

        They are checked at each change.
        """
        changed = self._state.changed
        with changed:
            if not changed.wait_for(lambda: true(self.statistics), timeout):
                raise TimeoutError(f"Not reached within {timeout} s: {self.statistics}")
            return self.statistics

    # Behaviour

    @property
    def reply_delay(self) -> float:
        """Seconds between the end of a message and the reply to it."""
        return self._state.reply_delay

    @reply_delay.setter
    def reply_delay(self, seconds: float) -> None:
        self._state.reply_delay = seconds

    def refuse(
        self,
        address: str,
        code: int = 550,
        text: str = "5.1.1 No such mailbox",
        verb: str = "RCPT",
    ) -> None:
        """Refuse an address from now on, as a recipient or (`verb="MAIL"`) as a sender."""
        self._state.refused_addresses[verb, address.casefold()] = (code, text)

    def accept(self, address: str, verb: str = "RCPT") -> None:
        """Accept an address that was refused."""
        self._state.refused_addresses.pop((verb, address.casefold()), None)

    def drop_final_replies(self, count: int = 1) -> None:
        """Close the connection before the final reply of the next `count` messages."""
        self._state.drops = count


class RelaySession(ServerSession):
    """A connection to the relay: Lettermint's rules, and counters."""

    def __init__(
        self,
        stream: ServerStream,
        security: str,
        number: int,
        config: ServerConfig,
        state: RelayState,
    ) -> None:
        super().__init__(stream, security, number, config)
        self.state = state
        #: The message that is being judged.
        self._submitted: SubmittedMessage | None = None
        #: Whether the statistics count it as open.
        self._counted = True
        state.add(connections=1, open=1)

    def command(self, verb: bytes, argument: bytes, line: bytes) -> None:
        self.state.count_command(verb.decode("ascii", "replace"))
        super().command(verb, argument, line)

    def respond(self, step: str, argument: bytes, reply: Reply) -> int:
        if step in _REFUSALS and reply.code >= 400:
            # Before the reply: a client that has read it must find the refusal.
            refusal = self._refusal(step, argument, reply)
            self.state.refused(refusal)
            self.state.call_listeners(refusal)
        return super().respond(step, argument, reply)

    def _refusal(self, step: str, argument: bytes, reply: Reply) -> Refusal:
        message, transaction = self._submitted, self.transaction or Transaction()
        address = (
            argument.decode("utf-8", "replace").partition(":")[2].partition(">")[0]
        )
        return Refusal(
            command=_REFUSALS[step],
            address=address.strip(" <") if step in ("mail", "rcpt") else "",
            code=reply.code,
            text=reply.text,
            mail_from=message.sender if message else transaction.sender,
            recipients=message.recipients if message else tuple(transaction.recipients),
            content=message.content if message else b"",
            connection=self.number,
            security=self.security,
            tls=self.stream.tls,
        )

    def quit(self, argument: bytes) -> None:
        # Before the reply: a client that has read it may connect again at once.
        if not argument:
            self.ended()
        super().quit(argument)

    def ended(self) -> None:
        if self._counted:
            self._counted = False
            self.state.add(open=-1)

    def login_tried(self, mechanism: str, username: str, *, success: bool) -> None:
        self.state.login_tried(success=success)

    def check_sender(self, address: str) -> None:
        self._check("MAIL", address)

    def check_recipient(self, address: str, accepted: int) -> None:
        try:
            self._check("RCPT", address)
            if accepted >= _MAX_RECIPIENTS:
                raise Refused(
                    452, f"4.5.3 At most {_MAX_RECIPIENTS} recipients a message"
                )
        except Refused:
            self.state.add(refused_recipients=1)
            raise
        self.state.add(recipients=1)

    def _check(self, verb: str, address: str) -> None:
        reply = self.state.refused_addresses.get((verb, address.casefold()))
        if reply is not None:
            raise Refused(*reply)

    def receive(self, message: SubmittedMessage, argument: bytes) -> None:
        self._submitted = message
        try:
            if max(map(len, message.content.split(b"\r\n"))) > _MAX_LINE:
                raise Refused(500, f"5.5.2 A line is longer than {_MAX_LINE} octets")
            reply = self._judge(message, parse_headers(message.content))
        except Refused as refusal:
            reply = refusal.reply
        if self.state.drops_reply():
            raise ConnectionEnded
        self.respond("dot", argument, reply)
        self._submitted = None

    def _judge(self, message: SubmittedMessage, headers: ParsedHeaders) -> Reply:
        keys, key = self.state.keys, headers.idempotency_key
        repeated = keys.begin(key, message.content)
        if repeated is not None:
            self.state.add(replays=repeated.code == 250)
            return repeated
        if self.state.reply_delay and not self._delay():
            keys.release(key)
            raise ConnectionEnded
        received = ReceivedMessage(
            mail_from=message.sender,
            recipients=message.recipients,
            content=message.content,
            **asdict(headers),
            smtputf8=b"SMTPUTF8" in message.parameters,
            body_8bit=message.parameters.get(b"BODY", b"").upper() == b"8BITMIME",
            chunked=message.chunked,
            connection=self.number,
            security=self.security,
            tls=self.stream.tls,
            token=self.token or "",
        )
        reply = Reply(250, f"2.0.0 Queued as {received.id}")
        # Under one lock: a test that finds the message may repeat it at once.
        with self.state.changed:
            keys.finish(key, reply)
            self.state.deliver(received)
        self.state.call_listeners(received)
        return reply

    def _delay(self) -> bool:
        """Wait before the final reply; return False if the relay stops meanwhile."""
        # A complete message is worked on to the end, even if its client has gone.
        with contextlib.suppress(OSError):
            self.stream.flush()
        self.state.add(in_progress=1)
        stopped = self.state.stopping.wait(self.state.reply_delay)
        self.state.add(in_progress=-1)
        return not stopped
