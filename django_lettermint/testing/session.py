"""One SMTP conversation, seen from the server, and the hooks by which servers differ."""

from __future__ import annotations

import binascii
import contextlib
import hmac
import re
import secrets
import ssl
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from .stream import MAX_LINE, ConnectionEnded, ServerStream

_COMMANDS = {
    verb: verb.decode().lower()
    for verb in b"EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY QUIT".split()
}
_AFTER_AUTH = frozenset({b"MAIL", b"RCPT", b"DATA", b"BDAT", b"VRFY"})
_AFTER_TLS = _AFTER_AUTH | {b"AUTH"}
#: The EHLO keyword of each parameter of MAIL, and the form of its value.
_PARAMETERS = {
    b"SIZE": ("SIZE", re.compile(rb"\d{1,20}")),
    b"BODY": ("8BITMIME", re.compile(rb"7BIT|8BITMIME", re.IGNORECASE)),
    b"SMTPUTF8": ("SMTPUTF8", re.compile(rb"")),
    b"AUTH": ("AUTH", re.compile(rb".+")),
}
_PATH = re.compile(
    rb"(FROM|TO):<((?:[^<>\"]|\"(?:[^\"\\]|\\.)*\")*)>(?: +(.*))?", re.IGNORECASE
)
_CHUNK = re.compile(rb"(\d{1,12})(?: +(LAST))?", re.IGNORECASE)
_UNKNOWN = "5.5.2 Command not recognized"
_TOO_BIG = "5.3.4 The message is too large"


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply; each line of the text becomes a line of it."""

    code: int
    text: str

    @property
    def octets(self) -> bytes:
        *lines, last = self.text.split("\n")
        more = "".join(f"{self.code}-{line}\r\n" for line in lines)
        return f"{more}{self.code} {last}\r\n".encode("utf-8", "surrogateescape")


class Refused(Exception):
    """Raised by a command that is not carried out; `reply` is the answer to it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What the sessions of a server have in common."""

    context: ssl.SSLContext
    hostname: str = "localhost"
    #: EHLO keywords with their parameters; AUTH and STARTTLS are added where they apply.
    features: tuple[str, ...]
    starttls: bool = True
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN", "CRAM-MD5")
    requires_auth: bool = True
    username: str = "lettermint"
    tokens: tuple[str, ...] = field(default=(), repr=False)
    #: Octets of a message.
    max_size: int = 25 * 1024 * 1024
    #: Whether BDAT LAST ends its transaction even if it is out of place. Else, RSET must.
    last_chunk_resets: bool = True


@dataclass(slots=True, kw_only=True)
class Transaction:
    """What is known of a message before its content is complete (RFC 5321 section 3.3)."""

    sender: str = ""
    #: The parameters of MAIL, names in upper case.
    parameters: Mapping[bytes, bytes] = field(default_factory=dict)
    recipients: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    #: A chunk was refused: nothing more is taken before RSET (RFC 3030 section 2).
    broken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedMessage:
    """A complete message, not judged yet."""

    sender: str
    parameters: Mapping[bytes, bytes]
    recipients: tuple[str, ...]
    #: Without dot-stuffing and without the final dot.
    content: bytes = field(repr=False)
    chunked: bool


class ServerSession:
    """One connection, served to its end by `run()`.

    A server overrides the methods that it decides differently: those of commands, named
    like the command, and the hooks at the end of this class.
    """

    def __init__(
        self, stream: ServerStream, security: str, number: int, config: ServerConfig
    ) -> None:
        """Prepare to serve; `security` is "tls", "starttls" or "plaintext"."""
        self.stream = stream
        self.security = security
        self.number = number
        self.config = config
        #: EHLO keywords that were offered; None before EHLO or HELO.
        self.announced: frozenset[str] | None = None
        self.authenticated = False
        #: The token that the client has proved to know.
        self.token: str | None = None
        self.transaction: Transaction | None = None

    def run(self) -> None:
        """Serve until either side ends the connection."""
        try:
            with contextlib.suppress(ConnectionEnded, OSError):
                self._converse()
        finally:
            self.ended()
            self.stream.close()

    def _converse(self) -> None:
        if self.security == "tls":
            self.start_tls()
        self.respond("banner", b"", Reply(220, f"{self.config.hostname} ESMTP"))
        while True:
            line = self.stream.read_line()
            verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
            self.command(verb.upper(), argument, line)

    def command(self, verb: bytes, argument: bytes, line: bytes) -> None:
        """Carry out a command; `line` is all of it, as it came."""
        step = _COMMANDS.get(verb, "unknown")
        try:
            if len(line) > MAX_LINE:
                raise Refused(500, "5.5.2 Line too long")
            if not self.encrypted and verb in _AFTER_TLS:
                raise Refused(530, "5.7.0 Must issue a STARTTLS command first")
            anonymous = self.config.requires_auth and not self.authenticated
            if anonymous and verb in _AFTER_AUTH:
                raise Refused(530, "5.7.0 Authentication required")
            getattr(self, step)(argument)
        except Refused as refusal:
            self.respond(step, argument, refusal.reply)

    @property
    def encrypted(self) -> bool:
        """Whether TLS is in use, or not meant to be."""
        return self.security == "plaintext" or self.stream.secure

    # Before the first message

    def ehlo(self, argument: bytes) -> None:
        config = self.config
        features = [config.hostname, *config.features]
        if not self.encrypted and config.starttls:
            features.append("STARTTLS")
        # No credentials may be asked for in clear (RFC 4954 section 4).
        if self.encrypted and config.mechanisms:
            features.append("AUTH " + " ".join(config.mechanisms))
        self.transaction = None
        self.announced = frozenset(each.partition(" ")[0] for each in features[1:])
        self.respond("ehlo", argument, Reply(250, "\n".join(features)))

    def helo(self, argument: bytes) -> None:
        self.transaction, self.announced = None, frozenset()
        self.respond("helo", argument, Reply(250, self.config.hostname))

    def starttls(self, argument: bytes) -> None:
        if argument:
            raise Refused(501, "5.5.4 STARTTLS takes no argument")
        if self.encrypted or not self.config.starttls:
            raise Refused(503, "5.5.1 STARTTLS is not offered")
        ready = Reply(220, "2.0.0 Ready to start TLS")
        if self.respond("starttls", argument, ready) == 220:
            self.start_tls()

    def start_tls(self) -> None:
        """Do the handshake, and forget EHLO and MAIL (RFC 3207 section 4.2)."""
        self.announced = self.transaction = None
        self.stream.start_tls(self.config.context)

    def auth(self, argument: bytes) -> None:
        if not self.announced or self.authenticated:
            raise Refused(503, "5.5.1 AUTH comes once, after EHLO")
        mechanism, _, initial = argument.partition(b" ")
        name = mechanism.decode("latin-1").upper()
        username, token = "", None
        try:
            username, *answer = self._exchange(name, initial)
            token = self._token(username, *answer)
            reply = Reply(235, "2.7.0 Authentication successful")
        except Refused as refusal:
            reply = refusal.reply
        self.login_tried(name, username, success=token is not None)
        while (code := self.respond("auth", argument, reply)) == 334:
            self.stream.read_line()
        self.authenticated, self.token = code == 235, token

    def _exchange(self, mechanism: str, initial: bytes) -> tuple[str, bytes, bytes]:
        """Ask for credentials; return user, secret and the challenge, empty without.

        `initial` is the initial response (RFC 4954 section 4), "=" for an empty one.
        """
        if mechanism not in self.config.mechanisms:
            raise Refused(504, "5.5.4 Unrecognized authentication type")
        challenge = self.challenge() if mechanism == "CRAM-MD5" else b""
        if initial and challenge:
            raise Refused(501, "5.7.0 CRAM-MD5 takes no initial response")
        asked = (b"Username:", b"Password:") if mechanism == "LOGIN" else (challenge,)
        answers = [_decode(initial.removeprefix(b"="))] if initial else []
        for each in asked[len(answers) :]:
            self.respond("auth_cont", b"", Reply(334, b64encode(each).decode()))
            answers.append(_decode(self.stream.read_line().rstrip(b"\r\n")))
        if mechanism == "PLAIN":
            answers = answers[0].split(b"\0")[1:]
        elif challenge:
            answers = answers[0].rsplit(b" ", 1)
        if len(answers) != 2:
            raise Refused(501, f"5.5.2 Not an answer of {mechanism}")
        return answers[0].decode("utf-8", "replace"), answers[1], challenge

    def _token(self, username: str, secret: bytes, challenge: bytes) -> str:
        for token in self.config.tokens:
            known = token.encode()
            if challenge:
                known = hmac.new(known, challenge, "md5").hexdigest().encode()
            if (username, secret) == (self.config.username, known):
                return token
        raise Refused(535, "5.7.8 Authentication credentials invalid")

    # Transactions

    def mail(self, argument: bytes) -> None:
        sender, parameters = _path(argument, b"FROM")
        if self.announced is None:
            raise Refused(503, "5.5.1 EHLO comes first")
        if self.transaction is not None:
            raise Refused(503, "5.5.1 MAIL within a transaction")
        for name, value in parameters.items():
            keyword, form = _PARAMETERS.get(name, ("", re.compile(b"")))
            if keyword not in self.announced:
                raise Refused(555, f"5.5.4 {name.decode('latin-1')} is not offered")
            if not form.fullmatch(value):
                raise Refused(501, f"5.5.4 {name.decode('latin-1')} has a wrong value")
        if int(parameters.get(b"SIZE", b"0")) > self.config.max_size:
            raise Refused(552, _TOO_BIG)
        self.check_sender(_reachable(sender, parameters))
        accepted = Reply(250, "2.1.0 Sender accepted")
        if self.respond("mail", argument, accepted) // 100 == 2:
            self.transaction = Transaction(sender=sender, parameters=parameters)

    def rcpt(self, argument: bytes) -> None:
        transaction = self.transaction
        if transaction is None:
            raise Refused(503, "5.5.1 MAIL comes first")
        recipient, parameters = _path(argument, b"TO")
        if not recipient:
            raise Refused(501, "5.1.3 RCPT needs an address")
        if parameters:
            raise Refused(555, "5.5.4 RCPT takes no parameters here")
        self.check_recipient(
            _reachable(recipient, transaction.parameters), len(transaction.recipients)
        )
        accepted = Reply(250, "2.1.5 Recipient accepted")
        if self.respond("rcpt", argument, accepted) // 100 == 2:
            transaction.recipients.append(recipient)

    def rset(self, argument: bytes) -> None:
        self.transaction = None
        self.respond("rset", argument, Reply(250, "2.0.0 Reset"))

    def data(self, argument: bytes) -> None:
        reply = Reply(354, "End data with <CR><LF>.<CR><LF>")
        try:
            if argument:
                raise Refused(501, "5.5.4 DATA takes no argument")
            if self._open_transaction().chunks:
                raise Refused(503, "5.5.1 DATA cannot follow BDAT")
        except Refused as refusal:
            reply = refusal.reply
        # A hook may let the client go on where it should not.
        if self.respond("data", argument, reply) != 354:
            return
        wire = self.stream.read_dotted(self.config.max_size, self.content_progress)
        self.content_read(wire or b"")
        if wire is not None:
            wire = (b"\r\n" + wire).replace(b"\r\n.", b"\r\n")[2:]
        self._finish(wire, b"", chunked=False)

    def bdat(self, argument: bytes) -> None:
        parts = _CHUNK.fullmatch(argument)
        if "CHUNKING" not in (self.announced or ()):
            raise Refused(500, _UNKNOWN)
        if parts is None:
            raise Refused(501, "5.5.4 BDAT takes a number and perhaps LAST")
        size, last = int(parts[1]), parts[2] is not None
        taken = self.transaction.chunks if self.transaction else []
        room = self.config.max_size - sum(map(len, taken))
        # The octets follow, whatever the reply is (RFC 3030 section 2).
        chunk = self.stream.read_chunk(size, room, self.content_progress)
        self.content_read(None)
        try:
            transaction = self._open_transaction()
            if chunk is None:
                raise Refused(552, _TOO_BIG)
        except Refused:
            self._break(last=last)
            raise
        transaction.chunks.append(chunk)
        if last:
            self._finish(b"".join(transaction.chunks), argument, chunked=True)
            return
        reply = Reply(250, f"2.0.0 {size} octets received")
        if self.respond("bdat", argument, reply) // 100 != 2:
            self._break(last=False)

    def _break(self, *, last: bool) -> None:
        if last and self.config.last_chunk_resets:
            self.transaction = None
        elif self.transaction is not None:
            self.transaction.broken = True

    def _open_transaction(self) -> Transaction:
        """Return the transaction that content may come for."""
        if self.transaction is None:
            raise Refused(503, "5.5.1 MAIL comes first")
        if self.transaction.broken:
            raise Refused(503, "5.5.1 A chunk was refused: RSET comes first")
        if not self.transaction.recipients:
            raise Refused(554, "5.5.1 No valid recipients")
        return self.transaction

    def _finish(self, content: bytes | None, argument: bytes, *, chunked: bool) -> None:
        transaction = self.transaction or Transaction()
        self.transaction = None
        if content is None or len(content) > self.config.max_size:
            self.respond("dot", argument, Reply(552, _TOO_BIG))
            return
        message = SubmittedMessage(
            sender=transaction.sender,
            parameters=transaction.parameters,
            recipients=tuple(transaction.recipients),
            content=content,
            chunked=chunked,
        )
        self.receive(message, argument)

    # Other commands

    def noop(self, argument: bytes) -> None:
        self.respond("noop", argument, Reply(250, "2.0.0 At your service"))

    def vrfy(self, argument: bytes) -> None:
        self.respond("vrfy", argument, Reply(252, "2.1.5 Try to send something"))

    def unknown(self, argument: bytes) -> None:
        raise Refused(500, _UNKNOWN)

    def quit(self, argument: bytes) -> None:
        if argument:
            raise Refused(501, "5.5.4 QUIT takes no argument")
        self.respond("quit", argument, Reply(221, "2.0.0 Bye"))
        self.stream.end_tls()
        raise ConnectionEnded

    # Hooks

    def respond(self, step: str, argument: bytes, reply: Reply) -> int:
        """Answer a step of the conversation; return the code that the session goes by.

        Steps are the commands in lower case, "banner", "auth_cont" (a challenge), "dot"
        (the final reply to a message, by DATA or by BDAT) and "unknown".
        """
        self.stream.write(reply.octets)
        return reply.code

    def challenge(self) -> bytes:
        """Return a new challenge for CRAM-MD5."""
        return f"<{secrets.token_hex(8)}@{self.config.hostname}>".encode()

    def login_tried(self, mechanism: str, username: str, *, success: bool) -> None:
        """Called before an AUTH command is answered."""

    def check_sender(self, address: str) -> None:
        """Raise Refused for the address of a MAIL command that is right otherwise."""

    def check_recipient(self, address: str, accepted: int) -> None:
        """Raise Refused for the address of a RCPT command, behind `accepted` others."""

    def content_progress(self, received: int) -> None:
        """Called with the octets of content or chunk that have come so far."""

    def content_read(self, wire: bytes | None) -> None:
        """Called with the content of DATA as it came, or with None after a chunk."""

    def receive(self, message: SubmittedMessage, argument: bytes) -> None:
        """Take or refuse a message, and answer at the step "dot"."""

    def ended(self) -> None:
        """Called before the connection is closed."""


def _decode(line: bytes) -> bytes:
    if line == b"*":
        raise Refused(501, "5.7.0 Authentication cancelled")
    try:
        return b64decode(line, validate=True)
    except binascii.Error:
        raise Refused(501, "5.5.2 Not base64") from None


def _path(argument: bytes, keyword: bytes) -> tuple[str, dict[bytes, bytes]]:
    """Return the address of a MAIL or RCPT command, and the parameters behind it."""
    found = _PATH.fullmatch(argument)
    if found is None or found[1].upper() != keyword:
        raise Refused(501, f"5.5.4 Syntax: {keyword.decode()}:<address>")
    words = (word.partition(b"=") for word in (found[3] or b"").split())
    parameters = {name.upper(): value for name, _, value in words}
    return found[2].decode("utf-8", "replace"), parameters


def _reachable(address: str, parameters: Mapping[bytes, bytes]) -> str:
    # RFC 6531 section 3.7.4.2 has this code for what MAIL did not announce.
    if not address.isascii() and b"SMTPUTF8" not in parameters:
        raise Refused(553, "5.6.7 A non-ASCII address needs SMTPUTF8")
    return address
