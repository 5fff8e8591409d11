"""One mail transaction (RFC 5321 section 3.3): its commands and replies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Outcome, Phase

if TYPE_CHECKING:
    from django_lettermint.envelope import Envelope

    from .replies import Reply

#: RFC 1870 section 4; Python refuses to read numbers of thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,20}")


@dataclass(slots=True, kw_only=True)
class MailTransaction:
    """One attempt to send an envelope to a relay; the session fills it in."""

    #: In the form that is sent: 7-bit when the relay does not offer 8BITMIME.
    envelope: Envelope
    #: All of it must end by then (`time.monotonic()`); set just before it is sent.
    until: float = 0.0
    #: These bytes may have reached the relay before, so their form must not change.
    frozen: bool = False
    #: Repeating is safe, so that several such messages may be unconfirmed at once.
    repeatable: bool = False
    #: Its commands may be pipelined behind the end of another message.
    may_follow: bool = True
    #: It is the first one on a connection that was idle in the pool.
    after_idle: bool = False
    #: The latest step. From COMMIT on, the relay may have the message.
    phase: Phase = Phase.MAIL
    #: In `time.monotonic()`; 0 until something of it may be on the wire.
    started: float = 0.0
    #: The number of its commands that the server has not answered.
    pending_replies: int = 0
    #: The reply to each RCPT.
    replies: dict[str, Reply] = field(default_factory=dict)
    #: Its first commands, or all of it, went out behind another message.
    pipelined: bool = False
    #: Another message's commands went out behind its end.
    followed: bool = False
    #: The server waits for the content.
    data_accepted: bool = False
    #: The content of another message had passed over the connection before.
    connection_carried: bool = False
    #: The reply that decided: the first refusal, or the one to the end of the content.
    reply: Reply | None = None
    #: The relay has refused the message, by that reply.
    refused: bool = False
    #: What broke the connection before a reply decided, or what the relay cannot take.
    failure: OSError | LettermintInvalidMessage | None = None

    @property
    def accepted(self) -> tuple[str, ...]:
        """Return the recipients that the relay accepted."""
        return tuple(to for to, reply in self.replies.items() if reply.positive)

    @property
    def not_refused(self) -> tuple[str, ...]:
        """Return the recipients that were accepted or not yet answered for."""
        return tuple(
            to
            for to in self.envelope.recipients
            if to not in self.replies or self.replies[to].positive
        )

    @property
    def recipients_known(self) -> bool:
        """Return whether the relay's reply for each recipient is known.

        A chunk may be lost together with these replies. A single recipient shares the
        outcome of the message.
        """
        left = self.not_refused
        return len(left) < 2 or all(to in self.replies for to in left)

    @property
    def permanent_failure(self) -> bool:
        """Return whether the same message would fail again."""
        return (self.reply is not None and self.reply.code >= 500) or isinstance(
            self.failure, LettermintInvalidMessage
        )

    @property
    def outcome(self) -> Outcome:
        """Return what is certain about the message."""
        if self.refused:
            return Outcome.NOT_SENT
        if self.phase is Phase.COMMIT:
            return Outcome.UNKNOWN
        return Outcome.SENT if self.phase is Phase.DONE else Outcome.NOT_SENT

    def adapt_to(self, features: Mapping[str, str]) -> None:
        """Bring the envelope into a form that a relay with these features takes.

        Raises LettermintInvalidMessage if there is none.
        """
        envelope = self.envelope
        if envelope.smtputf8 and "SMTPUTF8" not in features:
            raise LettermintInvalidMessage(
                "an address has non-ASCII characters before its @, and the relay does "
                "not offer SMTPUTF8 (RFC 6531): use an ASCII address"
            )
        if "8BITMIME" not in features and not envelope.is_ascii:
            if self.frozen:
                raise LettermintInvalidMessage(
                    "the relay no longer offers 8BITMIME: the message cannot be repeated "
                    "byte for byte"
                )
            envelope = envelope.seven_bit()
        limit = features.get("SIZE", "")
        if _NUMBER.fullmatch(limit) and 0 < int(limit) < envelope.size:
            raise LettermintInvalidMessage(
                f"the message has {envelope.size} octets, the relay accepts "
                f"{limit} (RFC 1870): send large files as links"
            )
        self.envelope = envelope

    def refuse(self, phase: Phase, reply: Reply) -> None:
        """Keep the first refusal: later ones only follow from it."""
        if not self.refused:
            self.phase, self.reply, self.refused = phase, reply, True

    def refuse_without_recipients(self) -> None:
        """Refuse the message if every recipient is refused.

        A temporary refusal (4yz) decides for all: another attempt may help.
        """
        replies = self.replies.values()
        if len(replies) == len(self.envelope.recipients) and not self.accepted:
            self.refuse(Phase.RCPT, min(replies, key=lambda reply: reply.code))

    def lose(self, error: OSError) -> None:
        """Note that the connection broke, unless a reply decided before.

        Refusals by X.4.2 before the end of the message announced the loss, and are
        removed.
        """
        if self.phase not in (Phase.COMMIT, Phase.DONE):
            if self.reply and self.reply.bad_connection:
                self.reply, self.refused = None, False
            self.replies = {
                to: reply
                for to, reply in self.replies.items()
                if not reply.bad_connection
            }
        if self.reply is None:
            self.failure = error


class Command(NamedTuple):
    """One command line, and the step it belongs to."""

    phase: Phase
    line: bytes
    recipient: str = ""


RSET = Command(Phase.MAIL, b"RSET\r\n")
DATA = Command(Phase.DATA, b"DATA\r\n")
DOT = Command(Phase.COMMIT, b".\r\n")


def mail_commands(envelope: Envelope, features: Mapping[str, str]) -> list[Command]:
    """Return MAIL and one RCPT for each recipient."""
    encoding = "utf-8" if envelope.smtputf8 else "ascii"
    parameters = ""
    if "SIZE" in features:
        parameters += f" SIZE={envelope.size}"
    if not envelope.is_ascii:
        parameters += " BODY=8BITMIME"
    if envelope.smtputf8:
        parameters += " SMTPUTF8"
    mail = f"MAIL FROM:<{envelope.mail_from}>{parameters}\r\n"
    commands = [Command(Phase.MAIL, mail.encode(encoding))]
    for to in envelope.recipients:
        line = f"RCPT TO:<{to}>\r\n".encode(encoding)
        commands.append(Command(Phase.RCPT, line, to))
    return commands
