"""One envelope's way to its outcome, over as many attempts as that takes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp.attempt import Attempt
from django_lettermint.smtp.replies import Reply

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.envelope import Envelope

#: Repeats of one unconfirmed message.
MAX_REPEATS = 10
#: Seconds before the first new try; doubled for each further one, up to the maximum.
PAUSE = 0.1
MAX_PAUSE = 10.0


@dataclass(slots=True)
class Deadline:
    """The time for all recipients of an envelope; it runs from the first attempt on."""

    seconds: float
    #: In `time.monotonic()`; 0 until it runs.
    started: float = 0.0

    def start(self) -> float:
        """Let it run, if it does not yet; return its end (monotonic)."""
        self.started = self.started or time.monotonic()
        return self.started + self.seconds

    def seconds_left(self) -> float:
        """Return what is left of it; it runs from now on."""
        return self.start() - time.monotonic()


@dataclass(slots=True, kw_only=True, eq=False)
class Transaction:
    """One envelope's way to its outcome, over as many attempts as that takes."""

    envelope: Envelope
    config: RelayConfig
    deadline: Deadline
    #: All transactions of the same message, in order; this one is appended by its maker.
    siblings: list[Transaction]
    #: The outcome is final.
    done: bool = False
    outcome: Outcome = Outcome.NOT_SENT
    #: The latest attempt, and the first one that may have been delivered.
    last: Attempt | None = None
    unconfirmed: Attempt | None = None
    #: Why there was no attempt, or no further one.
    error: Exception | None = None
    attempts: int = 0
    repeats: int = 0
    #: The latest attempt went over a connection that had served before.
    reused: bool = False
    #: In `time.monotonic()`; a repeat waits for `not_before`.
    ended: float = 0.0
    not_before: float = 0.0

    @property
    def repeatable(self) -> bool:
        """Return whether the relay would recognise a repeat, and answer for all."""
        if not self.config.idempotency or self.envelope.idempotency_key is None:
            return False
        # A repeat is confirmed as a whole, whomever the relay refused the first time.
        return self.unconfirmed is None or self.unconfirmed.recipients_known

    def attempt(self) -> Attempt:
        """Return the next attempt, to be sent and recorded."""
        return Attempt(
            envelope=self.envelope,
            exact=self.unconfirmed is not None,
            # What several recipients were told may be lost, and then no repeat is safe.
            repeatable=self.repeatable and len(self.envelope.recipients) == 1,
        )

    def resume(self) -> None:
        """Go on with an envelope that was left unconfirmed earlier, perhaps elsewhere.

        Its recipients are those that were accepted then.
        """
        self.unconfirmed = self.attempt()
        self.unconfirmed.phase = Phase.COMMIT
        accepted = dict.fromkeys(self.envelope.recipients, Reply(250))
        self.unconfirmed.replies = accepted

    def record(self, attempt: Attempt) -> None:
        """Take in how an attempt ended; if not done after it, try again."""
        self.attempts += 1
        self.last = attempt
        self.envelope = attempt.envelope
        if attempt.outcome is Outcome.SENT:
            self._finish(Outcome.SENT)
        elif self.unconfirmed:
            self._plan_repeat(attempt)
        elif attempt.outcome is Outcome.UNKNOWN:
            self.unconfirmed = attempt
            # A recipient refused before the loss must not ride on the repeat: the relay
            # may answer that one as it would have answered the first.
            self.envelope = self.envelope.part(1, attempt.not_refused)
            self._plan_repeat(attempt)
        elif attempt.refused or attempt.hopeless:
            self._finish(Outcome.NOT_SENT)
        if self.done and self.outcome is not Outcome.NOT_SENT:
            self._add_overflow()

    def fail(self, error: Exception | None) -> None:
        """Give up; what may have been delivered stays unknown."""
        self.error = error
        self._finish(Outcome.UNKNOWN if self.unconfirmed else Outcome.NOT_SENT)

    def fail_to_connect(self, error: Exception) -> None:
        """Give up, unless a repeat may still settle what is unknown."""
        if self.unconfirmed:
            self._plan_repeat(None)
        else:
            self.fail(error)

    def interrupt(self, attempt: Attempt) -> None:
        """End with what is certain at this moment."""
        self.attempts += 1
        self.last = attempt
        if attempt.outcome is Outcome.SENT:
            self._finish(Outcome.SENT)
        else:
            if attempt.outcome is Outcome.UNKNOWN:
                self.unconfirmed = self.unconfirmed or attempt
            self.fail(None)

    def _plan_repeat(self, attempt: Attempt | None) -> None:
        """Repeat after a pause, unless that cannot tell more than this attempt did."""
        self.repeats += 1
        seconds = pause(self.repeats)
        # 5yz to a repeat, a conflict say, proves that the key was used, not what came
        # of it: the outcome stays unknown. 4yz may mean that the first is in progress.
        hopeless = attempt is not None and attempt.hopeless
        too_late = self.repeats > MAX_REPEATS or seconds >= self.deadline.seconds_left()
        if hopeless or too_late or not self.repeatable:
            self._finish(Outcome.UNKNOWN)
        else:
            self.not_before = time.monotonic() + seconds

    def _add_overflow(self) -> None:
        """Add a transaction for recipients that the relay found too many at once."""
        first = self.unconfirmed or self.last
        replies = first.replies if first else {}
        overflow = [who for who, reply in replies.items() if _too_many(reply)]
        if overflow:
            further = Transaction(
                envelope=self.envelope.part(len(self.siblings) + 1, overflow),
                config=self.config,
                deadline=self.deadline,
                siblings=self.siblings,
            )
            self.siblings.append(further)

    def _finish(self, outcome: Outcome) -> None:
        self.done = True
        self.outcome = outcome
        self.ended = time.monotonic()


def _too_many(reply: Reply) -> bool:
    """Return whether a reply to RCPT asks for a further transaction.

    RFC 5321 section 4.5.3.1.10 says 452, older servers say 552.
    """
    return (reply.code, reply.enhanced_code or "?.5.3") in {
        (452, "4.5.3"),
        (452, "?.5.3"),
        (552, "5.5.3"),
        (552, "?.5.3"),
    }


def pause(tries: int, *, most: float = float("inf")) -> float:
    """Return the seconds to wait, jittered so that processes do not act in step."""
    seconds = min(MAX_PAUSE, PAUSE * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
    return max(0.0, min(seconds, most))
