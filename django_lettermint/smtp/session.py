"""One SMTP session after login: a state machine that sends message after message.

    READY ──send()──► BUSY ──all replies read──► READY        any error: CLOSED

BUSY remains when the next message's commands were pipelined behind the end of this one:
that message must be sent next. The phase of each message becomes COMMIT in `commit()`
and nowhere else; from there on the relay may have the message.
"""

from __future__ import annotations

import enum
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Phase

from . import chunking
from .replies import ProtocolError, Reply, ServerClosing
from .transaction import (
    DATA,
    DOT,
    RSET,
    Command,
    MailTransaction,
    mail_commands,
)

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

    from .relay_state import RelayState
    from .stream import SMTPStream

#: Called after each step with its name and a detail to show.
Trace = Callable[[str, str], None]

#: A message with more recipients is never pipelined behind the end of another: a server
#: may look up each of them before it replies to that end.
MAX_PIPELINED_RECIPIENTS = 3

#: Commands are written in groups of at most this size before their replies are read:
#: small enough that neither side can block on a full buffer (RFC 2920 section 3.1).
GROUP_COMMANDS = 100
GROUP_OCTETS = 4096

_MAIL_MAX = re.compile(r"(?i:\bMAILMAX=)([0-9]{1,9})(?!\S)")


def untraced(step: str, detail: str) -> None:
    """Ignore a step."""


class State(enum.Enum):
    """Whether a session can send."""

    READY = "ready"  #: between two messages
    BUSY = "busy"  #: a reply is pending
    CLOSED = "closed"  #: never changes again


class _Pending(NamedTuple):
    """A command without its reply."""

    transaction: MailTransaction
    command: Command
    #: It was written together with a command before it.
    grouped: bool


class Session:
    """An authenticated connection on which messages are sent one after the other.

    `stream` is an SMTPStream or an object with its methods. Methods other than `send()`
    are for the pool and for `chunking`.
    """

    def __init__(
        self,
        stream: SMTPStream,
        features: Mapping[str, str],
        relay: RelayState,
        *,
        trace: Trace = untraced,
    ) -> None:
        self.features = features
        self.relay = relay
        self.stream = stream
        self.state = State.READY
        #: Transactions begun.
        self.messages = 0
        #: The content of a message has passed over this connection.
        self.carried = False
        #: A refusal may have left a transaction open: RSET precedes the next one.
        self.needs_rset = False
        #: Commands without a reply, in the order in which they were written.
        self.pending: deque[_Pending] = deque()
        self._trace = trace
        #: The options of the message that is being sent, and its deadline (monotonic).
        self._config: RelayConfig
        self._pipelining: bool
        self._until: float

    @property
    def closed(self) -> bool:
        """Return whether the connection is lost or closed."""
        return self.state is State.CLOSED

    @property
    def reusable(self) -> bool:
        """Return whether it is between two messages, with no reply pending."""
        return self.state is State.READY

    @property
    def mail_max(self) -> int | None:
        """Return the server's limit of messages a connection (RFC 9422)."""
        limit = _MAIL_MAX.search(self.features.get("LIMITS", ""))
        return int(limit[1]) if limit else None

    # -- one message ---------------------------------------------------------------------

    def send(
        self,
        transaction: MailTransaction,
        following: Sequence[MailTransaction] = (),
        *,
        config: RelayConfig,
    ) -> None:
        """Send a message and fill in the transaction.

        To save round trips, parts of the `following` ones may go out behind it; they
        must then be sent next, in this order. An error of the connection is kept in
        the `failure` of each message that waits for a reply; interrupts propagate. Both
        close the session.
        """
        self._config = config
        self._pipelining = config.pipelining and "PIPELINING" in self.features
        self._until = transaction.until
        self.state = State.BUSY
        try:
            if config.chunking and "CHUNKING" in self.features:
                chunking.send(self, transaction, following)
            else:
                self._send_data(transaction, following)
        except OSError as error:
            self.close()
            for each in (transaction, *(one.transaction for one in self.pending)):
                each.lose(error)
        except BaseException:  # an interrupt: replies may still come
            self.close()
            raise
        else:
            self.state = State.BUSY if self.pending else State.READY

    def _send_data(
        self, transaction: MailTransaction, following: Sequence[MailTransaction]
    ) -> None:
        if transaction.pipelined:
            self.read_replies(transaction)
        elif not self.begin(transaction):
            return
        else:
            for group in self.groups(transaction, DATA):
                if not transaction.refused:
                    self.write(transaction, group)
                    self.read_replies(transaction)
        if transaction.refused:
            self._end_refused(transaction)
            return
        transaction.phase = Phase.CONTENT
        self._write_content(transaction)
        follower = self._follower(following[0]) if following else None
        self.commit(transaction)
        self.write(transaction, [DOT], follower)
        self.read_replies(transaction)

    def begin(self, transaction: MailTransaction, *, behind: bool = False) -> bool:
        """Return whether the relay can take the message; nothing is written yet.

        `behind`: its commands go out behind the end of another message.
        """
        behind = behind or bool(self.pending)
        try:
            transaction.adapt_to(self.features)
        except LettermintInvalidMessage as error:
            transaction.phase, transaction.failure = Phase.MESSAGE, error
            return False
        # After idling, the pool has just checked this.
        if not (behind or transaction.after_idle) and self.stream.has_input():
            raise ConnectionResetError("the server closed the connection while idle")
        transaction.started = time.monotonic()
        transaction.connection_carried = self.carried or behind
        self.messages += 1
        return True

    def commit(self, transaction: MailTransaction) -> None:
        """Enter phase COMMIT: from here on the relay may have the message.

        The caller must complete the message by its next write.
        """
        if time.monotonic() >= self._until:
            raise TimeoutError("timed out")
        transaction.phase = Phase.COMMIT

    def may_follow(self, transaction: MailTransaction) -> bool:
        """Return whether a message may go out behind the unconfirmed end of another."""
        return (
            self._pipelining
            and transaction.may_follow
            and self.relay.pipelines_past_data
            and len(transaction.envelope.recipients) <= MAX_PIPELINED_RECIPIENTS
        )

    def groups(
        self, transaction: MailTransaction, *last: Command
    ) -> list[list[Command]]:
        """Return [RSET] MAIL RCPT* and the last command, grouped into writes."""
        first = [RSET] if self.needs_rset else []
        commands = mail_commands(transaction.envelope, self.features)
        most = GROUP_COMMANDS if self._pipelining else 1
        groups: list[list[Command]] = [[]]
        octets = 0
        for command in (*first, *commands, *last):
            octets += len(command.line)
            if octets > GROUP_OCTETS or len(groups[-1]) >= most:
                groups.append([])
                octets = len(command.line)
            groups[-1].append(command)
        return groups

    def _follower(
        self, transaction: MailTransaction
    ) -> tuple[MailTransaction, list[Command]] | None:
        """Return the next message's commands, if they may go behind this one's end."""
        if not self.may_follow(transaction) or not self.begin(transaction, behind=True):
            return None
        transaction.pipelined = True
        # So few recipients make a single group.
        return transaction, self.groups(transaction, DATA)[0]

    def _end_refused(self, transaction: MailTransaction) -> None:
        """End a refused message so that the next one can be sent."""
        self.needs_rset = True
        if not transaction.data_accepted:
            return
        if transaction.accepted:
            # Only MAIL was refused: whatever ends the content might be delivered.
            raise ProtocolError("the server awaits a message that it has refused")
        # A lone dot ends the empty message without recipients (RFC 2920 section 3.1).
        self.write(transaction, [DOT])
        self.read_replies(transaction)

    def _write_content(self, transaction: MailTransaction) -> None:
        """Write the content without its terminator; raise if the server replies."""
        data = transaction.envelope.data.replace(b"\r\n.", b"\r\n..")
        if data.startswith(b"."):
            data = b"." + data
        try:
            self.write(transaction, content=data, stop_on_reply=True)
        except OSError:
            if not self.stream.has_input():
                raise
        if self.stream.has_input():
            until = min(self._until, time.monotonic() + self._config.timeout)
            self._raise_interruption(transaction, self.stream.read_reply(until))

    # -- commands and their replies ------------------------------------------------------

    def write(
        self,
        transaction: MailTransaction,
        commands: Sequence[Command] = (),
        follower: tuple[MailTransaction, Sequence[Command]] | None = None,
        *,
        content: bytes = b"",
        stop_on_reply: bool = False,
    ) -> None:
        """Write commands of a message and of its follower, and content, at once.

        With `stop_on_reply`, return when the server sends something meanwhile.
        """
        first = len(self.pending)
        sequence = [(transaction, command) for command in commands]
        if follower:
            transaction.followed = True
            sequence += [(follower[0], command) for command in follower[1]]
        for owner, command in sequence:
            grouped = len(self.pending) > first
            self.pending.append(_Pending(owner, command, grouped))
            owner.pending_replies += 1
        lines = b"".join([command.line for _, command in sequence])
        try:
            self.stream.write(
                lines + content,
                self._until,
                stall=self._config.timeout,
                stop_on_reply=stop_on_reply,
            )
        except OSError:
            # A reply that came before the loss says more than the error.
            self.read_available_replies()
            raise

    def read_replies(self, transaction: MailTransaction) -> None:
        """Read all replies to a message, and those that are due before them."""
        while transaction.pending_replies:
            self._read_next()

    def read_available_replies(self) -> None:
        """Read the replies that are there already."""
        while self.pending and self.stream.has_input():
            self._read_next()

    def _read_next(self) -> None:
        # The command stays pending if anything breaks: see send().
        transaction, command, grouped = self.pending[0]
        final = command.phase is Phase.COMMIT
        if not (final or transaction.phase is Phase.COMMIT or transaction.refused):
            transaction.phase = command.phase
        seconds = self._config.final_reply_timeout if final else self._config.timeout
        try:
            reply = self.stream.read_reply(min(self._until, time.monotonic() + seconds))
        except TimeoutError:
            if final or not grouped:
                raise
            raise TimeoutError(
                "timed out behind another command: if the relay offers PIPELINING "
                "but does not handle it, set pipelining=False"
            ) from None
        if final:
            self._take_final_reply(transaction, reply)
        else:
            self._take_reply(transaction, command, reply)
        if self._trace is not untraced:
            self._trace(command.line.decode().strip(), str(reply))
        self.pending.popleft()
        transaction.pending_replies -= 1

    def _take_reply(
        self, transaction: MailTransaction, command: Command, reply: Reply
    ) -> None:
        """Apply the reply to MAIL, RCPT, DATA or RSET."""
        first_after_idle, transaction.after_idle = transaction.after_idle, False
        if reply.closing or (first_after_idle and reply.bad_connection):
            if transaction.phase is Phase.COMMIT and not transaction.accepted:
                # All of the chunk was written, but the server has accepted nothing.
                transaction.phase = command.phase
            raise ServerClosing(reply)
        positive = reply.code == 354 if command is DATA else reply.positive
        if not (positive or (reply.negative and command is not RSET)):
            line = command.line.decode().strip()
            raise ProtocolError(f"unexpected reply to {line[:80]}: {reply}")
        if command is RSET:
            self.needs_rset = False
        elif command.phase is Phase.RCPT:
            # After a refused MAIL, the reply to RCPT (503) is not about the recipient.
            if reply.positive or not transaction.refused:
                transaction.replies[command.recipient] = reply
            if reply.negative:
                # Decided now: the server may close instead of replying to DATA.
                transaction.refuse_without_recipients()
        elif reply.negative:
            transaction.refuse(command.phase, reply)
        elif command is DATA:
            transaction.data_accepted = True

    def _take_final_reply(self, transaction: MailTransaction, reply: Reply) -> None:
        """Apply the reply to the end of the content."""
        if transaction.phase is not Phase.COMMIT and not transaction.refused:
            self._raise_interruption(transaction, reply)
        self.carried = self.carried or not transaction.refused
        if reply.negative:
            transaction.refuse(Phase.COMMIT, reply)
            self.needs_rset = True
        elif not reply.positive or reply.code == 221:
            raise ProtocolError(f"unexpected reply to the end of the message: {reply}")
        elif not transaction.refused:
            transaction.phase, transaction.reply = Phase.DONE, reply
        elif transaction.accepted:
            transaction.phase = Phase.COMMIT
            transaction.reply, transaction.refused = None, False
            raise ProtocolError(f"a message that was refused at MAIL got {reply}")
        if reply.closing:
            raise ServerClosing(reply)

    def _raise_interruption(
        self, transaction: MailTransaction, reply: Reply
    ) -> NoReturn:
        if reply.closing:
            raise ServerClosing(reply)
        if reply.negative:
            transaction.refuse(Phase.CONTENT, reply)
        raise ProtocolError(f"the server interrupted the message: {reply}")

    # -- between messages ----------------------------------------------------------------

    def alive(self) -> bool:
        """Return, without a round trip, whether the connection is open and silent."""
        return not self.stream.has_input()

    def ping(self, seconds: float) -> bool:
        """Send NOOP and require 250, with no 421 queued behind it."""
        until = time.monotonic() + seconds
        try:
            self.stream.write(b"NOOP\r\n", until)
            return self.stream.read_reply(until).code == 250 and self.alive()
        except OSError:
            return False

    def send_quit(self) -> None:
        """Send QUIT without waiting."""
        try:
            self.stream.write(b"QUIT\r\n", time.monotonic() + 0.01)
        except OSError:
            self.close()

    def wait_closed(self, until: float) -> None:
        """Wait for the reply to QUIT, at most until then (monotonic), and close."""
        try:
            if not self.closed:
                self.stream.read_reply(until)
        except OSError:
            pass  # many servers close without a reply
        finally:
            self.close()

    def close(self) -> None:
        """Close without sending anything."""
        self.state = State.CLOSED
        self.stream.close()
