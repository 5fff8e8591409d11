"""Commands on the wire, and the replies they are owed, in the order of both."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from django_lettermint.results import Phase

from .attempt import DATA, RSET, Attempt, Command
from .replies import ProtocolError, Reply

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

    from .stream import Wire

#: Called after each step with its name and a detail to show.
Trace = Callable[[str, str], None]


def untraced(step: str, detail: str) -> None:
    """Ignore a step."""


class Pipeline:
    """Writes commands, and fills in attempts with what each reply means for them.

    The methods raise OSError when client and server are out of step or apart.
    """

    def __init__(self, wire: Wire, config: RelayConfig, trace: Trace) -> None:
        self.wire = wire
        #: All that is written and read now must be over by then (monotonic).
        self.until = 0.0
        #: A refusal may have left a transaction open: RSET goes ahead of the next one.
        self.dirty = False
        self.config = config
        self._trace = trace
        self._owed: deque[tuple[Attempt, Command]] = deque()

    @property
    def waits(self) -> bool:
        """Return whether any reply is owed."""
        return bool(self._owed)

    def write(
        self,
        attempt: Attempt,
        commands: Sequence[Command],
        rider: Sequence[tuple[Attempt, Command]] = (),
        *,
        content: bytes = b"",
    ) -> None:
        """Write commands of a message and of its rider, or content, in one go."""
        owed = [(attempt, command) for command in commands] + list(rider)
        self._owed.extend(owed)
        for owner, _ in owed:
            owner.owed += 1
        lines = b"".join([command.line for _, command in owed])
        self.write_octets(lines + content)

    def write_octets(self, data: bytes, *, heed: bool = False) -> None:
        """Write octets; with `heed`, stop when the server speaks in between."""
        try:
            self.wire.write(data, self.until, stall=self.config.timeout, heed=heed)
        except OSError:
            # What the server said before it left tells more than the loss.
            self.read_what_came()
            raise

    def settle(self, attempt: Attempt) -> None:
        """Read all replies owed for a message, and those owed before them."""
        while attempt.owed:
            self._read_next()

    def read_what_came(self) -> None:
        """Read the replies that are there already."""
        while self._owed and self.wire.has_input():
            self._read_next()

    def read_interruption(self, attempt: Attempt) -> NoReturn:
        """Read what the server says while the content is not complete yet."""
        self._interrupted(attempt, self._read(self.config.timeout))

    def fail(self, attempt: Attempt, error: OSError) -> None:
        """Note what broke in each message that still has no reply to decide on it."""
        for each in (attempt, *(owner for owner, _ in self._owed)):
            if each.reply is None:
                each.failure = error

    def _read(self, seconds: float) -> Reply:
        return self.wire.read_reply(min(self.until, time.monotonic() + seconds))

    def _read_next(self) -> None:
        # The reply stays owed if anything breaks: see fail().
        attempt, command = self._owed[0]
        if command.phase is Phase.COMMIT:
            reply = self._read(self.config.final_reply_timeout)
        else:
            if attempt.phase is not Phase.COMMIT and not attempt.refused:
                attempt.phase = command.phase
            reply = self._read(self.config.timeout)
        if self._trace is not untraced:
            self._trace(command.line.decode().strip(), str(reply))
        if command.phase is Phase.COMMIT:
            self._conclude(attempt, reply)
        else:
            self._match(attempt, command, reply)
        self._owed.popleft()
        attempt.owed -= 1

    def _match(self, attempt: Attempt, command: Command, reply: Reply) -> None:
        """Take the reply to a command."""
        if reply.closing:
            if command.phase is Phase.MAIL:
                # With BDAT all of it is on the wire, but nothing of it is taken.
                attempt.phase = Phase.MAIL
            raise ConnectionResetError(f"the server is closing: {reply}")
        agreed = reply.code == 354 if command is DATA else reply.positive
        if not (agreed or (reply.negative and command is not RSET)):
            line = command.line.decode().strip()
            raise ProtocolError(f"unexpected reply to {line[:80]}: {reply}")
        if command is RSET:
            self.dirty = False
            return
        if command.phase is Phase.RCPT:
            # After a refused MAIL, the 503 to what follows says nothing of recipients.
            if reply.positive or not attempt.refused:
                attempt.replies[command.recipient] = reply
            # Now: the server may hang up instead of answering what follows.
            attempt.refuse_without_recipients()
            return
        if command is DATA:
            attempt.awaited = agreed
        if reply.negative:
            attempt.refuse(command.phase, reply)

    def _conclude(self, attempt: Attempt, reply: Reply) -> None:
        """Take the reply to the end of the content."""
        if attempt.phase is not Phase.COMMIT and not attempt.refused:
            self._interrupted(attempt, reply)
        if reply.negative:
            attempt.refuse(Phase.COMMIT, reply)
            self.dirty = True
        elif not reply.positive or reply.code == 221:
            raise ProtocolError(f"unexpected reply to the end of the message: {reply}")
        elif not attempt.refused:
            attempt.phase, attempt.reply = Phase.DONE, reply
        elif attempt.accepted:
            attempt.phase, attempt.reply = Phase.COMMIT, None
            raise ProtocolError(f"a message that was refused at MAIL got {reply}")
        if reply.closing:
            raise ConnectionResetError(f"the server is closing: {reply}")

    def _interrupted(self, attempt: Attempt, reply: Reply) -> NoReturn:
        if reply.negative and not reply.closing:
            attempt.refuse(Phase.CONTENT, reply)
        raise ProtocolError(f"the server interrupted the message: {reply}")
