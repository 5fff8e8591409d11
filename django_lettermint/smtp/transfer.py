"""Two ways to hand a message over, DATA and BDAT, and the point of no return in each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Phase

from .attempt import (
    DATA,
    DOT,
    GROUP_COMMANDS,
    Attempt,
    Command,
    compose,
    fit,
    in_groups,
)
from .replies import ProtocolError

if TYPE_CHECKING:
    from .pipeline import Pipeline

#: With BDAT, this much may be on the wire unconfirmed.
WINDOW_MESSAGES = 50
WINDOW_OCTETS = 1024 * 1024

#: Octets of a BDAT chunk that are held back and written by themselves: without them
#: the chunk is incomplete, so they are its commit point.
HELD_BACK = 2


class _Transfer:
    """What both ways have in common: the commands, and the checks before them."""

    def __init__(
        self, pipeline: Pipeline, features: Mapping[str, str], *, pipelining: bool
    ) -> None:
        self.pipeline = pipeline
        self.features = features
        #: Commands in a group.
        self.most = GROUP_COMMANDS if pipelining else 1
        #: Transactions begun.
        self.begun = 0

    def begin(self, attempt: Attempt) -> bool:
        """Check, before anything is said, that the relay can take the message."""
        if not self.fits(attempt):
            return False
        if not self.pipeline.waits and self.pipeline.wire.has_input():
            raise ConnectionResetError("the server closed the connection while idle")
        self.start(attempt)
        return True

    def fits(self, attempt: Attempt) -> bool:
        try:
            attempt.envelope = fit(attempt, self.features)
        except LettermintInvalidMessage as error:
            attempt.phase, attempt.failure = Phase.MESSAGE, error
            return False
        return True

    def start(self, attempt: Attempt) -> None:
        attempt.started = time.monotonic()
        self.begun += 1

    def groups_until_refused(
        self, attempt: Attempt, last: Command
    ) -> Iterator[list[Command]]:
        for group in self.groups(attempt, last):
            if attempt.refused:
                return
            yield group

    def groups(self, attempt: Attempt, last: Command) -> list[list[Command]]:
        reset = self.pipeline.dirty
        commands = compose(attempt.envelope, self.features, last, reset=reset)
        return in_groups(commands, most=self.most)


class DataTransfer(_Transfer):
    """DATA: the content waits for the replies to MAIL, RCPT and DATA.

    The next message's commands ride behind the end of the one before.
    """

    def send(self, attempt: Attempt, following: Sequence[Attempt]) -> None:
        if not attempt.ahead:
            if not self.begin(attempt):
                return
            for group in self.groups_until_refused(attempt, DATA):
                self.pipeline.write(attempt, group)
                self.pipeline.settle(attempt)
        self.pipeline.settle(attempt)
        if attempt.refused:
            self._give_up(attempt)
            return
        attempt.phase = Phase.CONTENT
        self._write_content(attempt)
        rider = self._rider(following)
        # Nothing but the write may stand between this look at the clock and COMMIT.
        self.pipeline.wire.check_time(self.pipeline.until)
        attempt.phase = Phase.COMMIT
        self.pipeline.write(attempt, [DOT], rider)
        self.pipeline.settle(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        """Leave a refused message so that the next one can follow."""
        self.pipeline.dirty = True
        if not attempt.awaited:
            return
        if attempt.accepted:
            # Only MAIL was refused, and whatever ends the content might be delivered.
            raise ProtocolError("the server awaits a message that it has refused")
        # A lone dot, which sends an empty message to nobody (RFC 2920 section 3.1).
        self.pipeline.write(attempt, [DOT])
        self.pipeline.settle(attempt)

    def _write_content(self, attempt: Attempt) -> None:
        """Write all but the terminator; believe a refusal that comes too early."""
        data = attempt.envelope.data.replace(b"\r\n.", b"\r\n..")
        if data.startswith(b"."):
            data = b"." + data
        try:
            self.pipeline.write_octets(data, heed=True)
        except OSError:
            if not self.pipeline.wire.has_input():
                raise
        if self.pipeline.wire.has_input():
            self.pipeline.read_interruption(attempt)

    def _rider(self, following: Sequence[Attempt]) -> list[tuple[Attempt, Command]]:
        """Return the next message's commands, if they may go behind this one's dot."""
        for attempt in following[:1]:
            if self.most > 1 and self.fits(attempt):
                groups = self.groups(attempt, DATA)
                if len(groups) == 1:
                    self.start(attempt)
                    attempt.ahead = True
                    return [(attempt, command) for command in groups[0]]
        return []


class ChunkTransfer(_Transfer):
    """BDAT (RFC 3030): all goes out in one write, but for the octets that commit.

    Messages that are safe to repeat follow each other unconfirmed.
    """

    def send(self, attempt: Attempt, following: Sequence[Attempt]) -> None:
        if not attempt.ahead and not self._start_chunk(attempt):
            return
        octets = attempt.envelope.size
        for later in following[: WINDOW_MESSAGES - 1]:
            octets += later.envelope.size
            # Without a key to repeat it, one message at most may end as UNKNOWN.
            safe = attempt.repeatable and later.repeatable and octets <= WINDOW_OCTETS
            if not later.ahead and not (safe and self._start_chunk(later)):
                break
            later.ahead = True
        self.pipeline.settle(attempt)
        if attempt.refused:
            self.pipeline.dirty = True

    def _start_chunk(self, attempt: Attempt) -> bool:
        """Write a whole message, its end included; return whether its reply is owed."""
        if not self.begin(attempt):
            return False
        if self.pipeline.waits:
            # Should the message ahead be refused, its transaction may still be open.
            self.pipeline.dirty = True
        bdat = Command(Phase.COMMIT, b"BDAT %d LAST\r\n" % attempt.envelope.size)
        for group in self.groups_until_refused(attempt, bdat):
            if group[-1] is bdat:
                self._write_chunk(attempt, group)
                return True
            self.pipeline.write(attempt, group)
            self.pipeline.settle(attempt)
        self.pipeline.dirty = True
        return False

    def _write_chunk(self, attempt: Attempt, group: Sequence[Command]) -> None:
        data = attempt.envelope.data
        attempt.phase = Phase.CONTENT
        self.pipeline.write(attempt, group, content=data[:-HELD_BACK])
        self.pipeline.read_what_came()
        self.pipeline.wire.check_time(self.pipeline.until)
        if not attempt.refused:
            attempt.phase = Phase.COMMIT
        # Also of a refused chunk: the server waits for all its octets.
        self.pipeline.write_octets(data[-HELD_BACK:])
