"""One SMTP dialogue of a fault server."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.fault_dialogue import Dialogue, Setup
from tests.fault_ledger import Login
from tests.fault_logins import CHALLENGES, judge
from tests.fault_transaction import Transaction, parse_path
from tests.fault_violations import in_content, in_line
from tests.faults import READY_FOR_TLS, Answer, Phase, text_answer

if TYPE_CHECKING:
    from tests.fault_ledger import Ledger, Verdict

VERDICTS: dict[Verdict, Answer] = {
    "new": text_answer(250, "2.0.0 queued"),
    "replay": text_answer(250, "2.0.0 queued"),
    "busy": text_answer(
        451, "4.5.0 a message with this Idempotency-Key is in progress"
    ),
    "conflict": text_answer(554, "5.5.0 Idempotency-Key was used for another message"),
}


class Session(Dialogue):
    """Speak SMTP strictly, note what the client does wrong, and let the script have its way."""

    def __init__(
        self, sock: socket.socket, number: int, setup: Setup, ledger: Ledger
    ) -> None:
        super().__init__(sock, number, setup, ledger)
        self.secure = self.authenticated = False
        self.reset()

    def converse(self) -> None:
        if self.setup.tls == "implicit":
            self.start_tls()
        self.respond("banner", b"", text_answer(220, "fault.test ESMTP"))
        while True:
            self.behind_end = self.early > 0
            line = self.read_line()
            self.early -= len(line)
            words = line.rstrip(b"\r\n").partition(b" ")
            self.command(line, words[0].upper(), words[2])

    def command(self, line: bytes, verb: bytes, argument: bytes) -> None:
        self.ledger.note(
            lambda: self.ledger.commands.append((self.number, line.rstrip(b"\r\n")))
        )
        for violation in in_line(
            line, verb, self.announced, smtputf8=self.transaction.smtputf8
        ):
            self.violation(violation)
        if verb in (b"AUTH", b"MAIL") and self.setup.tls and not self.secure:
            self.violation(f"{verb.decode()} in clear")
        if verb != b"BDAT":
            self.look_behind(verb)
        handlers: dict[bytes, Callable[[bytes], None]] = {
            b"EHLO": self.ehlo, b"HELO": self.helo, b"STARTTLS": self.starttls, b"AUTH": self.auth,
            b"MAIL": self.mail, b"RCPT": self.rcpt, b"DATA": self.data, b"BDAT": self.bdat,
            b"RSET": self.rset, b"NOOP": self.noop, b"VRFY": self.vrfy, b"QUIT": self.quit,
        }  # fmt: skip
        handlers.get(verb, self.unknown)(argument)

    # Commands.

    def ehlo(self, argument: bytes) -> None:
        features = list(self.setup.features)
        if self.setup.tls == "starttls" and not self.secure:
            features.append("STARTTLS")
        if self.setup.auth and (self.secure or self.setup.tls is None):
            features.append("AUTH " + " ".join(self.setup.auth))
        self.reset()
        self.announced = {feature.partition(" ")[0] for feature in features}
        self.respond("ehlo", argument, text_answer(250, "fault.test", *features))

    def helo(self, argument: bytes) -> None:
        self.reset()
        self.announced = set()
        self.respond("helo", argument, text_answer(250, "fault.test"))

    def starttls(self, argument: bytes) -> None:
        possible = self.setup.tls == "starttls" and not self.secure
        ready = Answer(220, lambda wire: wire.write(READY_FOR_TLS))
        answer = ready if possible else text_answer(502, "5.5.1 no STARTTLS here")
        if self.respond("starttls", argument, answer) == 220:
            self.buffer.clear()  # whatever came in clear may be an attacker's (RFC 3207 section 6)
            self.start_tls()

    def start_tls(self) -> None:
        self.respond(
            "tls", b"", Answer(220, lambda _: self.handshake(self.setup.context))
        )
        self.secure = isinstance(self.sock, ssl.SSLSocket)
        self.announced = set()
        if not self.secure:
            self.pause()

    def auth(self, argument: bytes) -> None:
        mechanism, _, initial = argument.decode("latin-1").partition(" ")
        mechanism = mechanism.upper()
        if mechanism not in self.setup.auth or mechanism not in CHALLENGES:
            self.log_in(Login(mechanism, "", ok=False))
            self.violation(f"AUTH {mechanism} was not offered")
            self.respond("auth", argument, text_answer(504, "5.5.4 not offered"))
            return
        replies = [initial.encode("latin-1")] if initial else []
        for challenge in CHALLENGES[mechanism][len(replies) :]:
            text = base64.b64encode(challenge).decode()
            self.respond("auth_cont", argument, text_answer(334, text))
            replies.append(self.read_line().rstrip(b"\r\n"))
        if replies[-1] == b"*":
            self.respond("auth", argument, text_answer(501, "5.7.0 cancelled"))
            return
        login = judge(mechanism, replies, self.setup.user, self.setup.token)
        self.log_in(login)
        answer = (
            text_answer(235, "2.7.0 ok") if login.ok else text_answer(535, "5.7.8 no")
        )
        while (code := self.respond("auth", argument, answer)) == 334:
            self.read_line()
        self.authenticated = code == 235

    def log_in(self, login: Login) -> None:
        self.ledger.note(lambda: self.ledger.logins.append(login))

    def mail(self, argument: bytes) -> None:
        self.message = self.ledger.begin_message()
        self.messages += 1
        path = parse_path(argument, b"FROM")
        answer = text_answer(250, "2.1.0 sender ok")
        if self.transaction.sender is not None:
            self.violation("MAIL inside a transaction")
            answer = text_answer(503, "5.5.1 nested MAIL")
        elif self.setup.auth and not self.authenticated:
            answer = text_answer(530, "5.7.0 authentication required")
        elif path is None:
            answer = text_answer(501, "5.5.4 syntax")
        if self.respond("mail", argument, answer) // 100 == 2 and path is not None:
            self.transaction.sender, self.transaction.parameters = path

    def rcpt(self, argument: bytes) -> None:
        path = parse_path(argument, b"TO")
        answer = text_answer(250, "2.1.5 recipient ok")
        if self.transaction.sender is None:
            answer = text_answer(503, "5.5.1 MAIL first")
        elif path is None:
            answer = text_answer(501, "5.5.4 syntax")
        if self.respond("rcpt", argument, answer) // 100 == 2 and path is not None:
            self.transaction.recipients.append(path[0])

    def data(self, argument: bytes) -> None:
        answer = self.transaction.refusal_of_content() or text_answer(354, "go ahead")
        if self.respond("data", argument, answer) != 354:
            return
        body, answered = self.read_body(None)
        self.look_behind(b"content")
        wire = body[: -len(b".\r\n")]
        self.check_content(wire, stuffed=True)
        content = (b"\r\n" + wire).replace(b"\r\n.", b"\r\n").removeprefix(b"\r\n")
        self.finish(content, b"", ("dot",), answered=answered)

    def bdat(self, argument: bytes) -> None:
        chunk = re.fullmatch(rb"(\d{1,9})( LAST)?", argument, re.IGNORECASE)
        if chunk is None:
            self.respond("bdat", argument, text_answer(501, "5.5.4 syntax"))
            return
        body, answered = self.read_body(int(chunk[1]))
        if "CHUNKING" not in self.announced:
            self.violation("BDAT was not offered")
        self.look_behind(b"chunk")
        if refusal := self.transaction.refusal_of_content():
            self.respond("bdat", argument, refusal)
            return
        self.transaction.chunks += body
        if chunk[2]:
            self.check_content(bytes(self.transaction.chunks), stuffed=False)
            self.finish(
                bytes(self.transaction.chunks),
                argument,
                ("bdat", "dot"),
                answered=answered,
            )
        elif answered or self.chunk_refused(argument):
            self.transaction.recipients.clear()  # RFC 3030: only RSET gets out of this

    def chunk_refused(self, argument: bytes) -> bool:
        answer = text_answer(250, "2.0.0 chunk taken")
        return self.respond("bdat", argument, answer) // 100 != 2

    def rset(self, argument: bytes) -> None:
        self.reset()
        self.respond("rset", argument, text_answer(250, "2.0.0 reset"))

    def noop(self, argument: bytes) -> None:
        self.respond("noop", argument, text_answer(250, "2.0.0 ok"))

    def vrfy(self, argument: bytes) -> None:
        self.respond("vrfy", argument, text_answer(252, "2.1.5 perhaps"))

    def unknown(self, argument: bytes) -> None:
        self.respond("unknown", argument, text_answer(500, "5.5.2 unknown command"))

    def quit(self, argument: bytes) -> None:
        self.respond("quit", argument, text_answer(221, "2.0.0 bye"))
        self.drop()

    def reset(self) -> None:
        """Forget the transaction."""
        self.transaction = Transaction(connection=self.number)

    # Content.

    def check_content(self, wire: bytes, *, stuffed: bool) -> None:
        for violation in in_content(
            wire, stuffed=stuffed, eight_bit=self.transaction.eight_bit
        ):
            self.violation(violation)

    def finish(
        self,
        content: bytes,
        argument: bytes,
        phases: tuple[Phase, ...],
        *,
        answered: bool,
    ) -> None:
        """Take or refuse a whole message; a script that answered within its body has refused it."""
        delivery = self.transaction.delivery(content)
        self.reset()
        if answered:
            return
        verdict = self.ledger.claim(delivery)
        answer = VERDICTS[verdict]
        for phase in phases:
            answer = self.decide(phase, argument, answer)
        if verdict == "new":
            taken = answer.code // 100 == 2
            if taken:
                self.ledger.note(lambda: self.ledger.deliveries.append(delivery))
            self.settle = lambda: self.ledger.settle(delivery, taken=taken)
        self.more_input()
        self.early = len(self.buffer)
        answer.play(self)
        self.respond("idle", b"", Answer(0, lambda _: None))
