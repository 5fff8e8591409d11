"""Submissions: one envelope each, over as many mail transactions as it needs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django_lettermint.exceptions import ConnectionLost
from django_lettermint.results import Outcome
from django_lettermint.smtp import MailTransaction, Reply

from . import policy
from .policy import Decision, Failure

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.envelope import Envelope


@dataclass(slots=True)
class Deadline:
    """The time limit for all parts of an envelope; it starts with the first try."""

    seconds: float
    #: In `time.monotonic()`; 0 until it runs.
    started: float = 0.0

    def seconds_left(self) -> float:
        """Return the seconds that are left; the first call starts the time."""
        now = time.monotonic()
        self.started = self.started or now
        return self.started + self.seconds - now


@dataclass(slots=True, kw_only=True, eq=False)
class Submission:
    """One envelope on its way to an outcome, and what its tries have met."""

    envelope: Envelope
    config: RelayConfig
    deadline: Deadline
    #: All submissions of the same message, in order, this one included.
    message_submissions: list[Submission]
    #: The outcome is final.
    done: bool = False
    outcome: Outcome = Outcome.NOT_SENT
    #: The latest mail transaction, and the first one that may have been delivered.
    last: MailTransaction | None = None
    unconfirmed: MailTransaction | None = None
    #: The answers to all recipients are known of each repeat that may be delivered.
    repeats_known: bool = True
    #: Refusals on repeats, by recipient; the first try may have been delivered to them.
    refused_on_repeat: dict[str, Reply] = field(default_factory=dict)
    #: Why there was no transaction, or no further one.
    error: Exception | None = None
    #: Tries, including connections that could not be made.
    attempts: int = 0
    repeats: int = 0
    #: The latest try was on a connection that had served before.
    reused: bool = False
    #: The relay refused it while it was pipelined behind another message.
    refused_pipelined: bool = False
    #: Tries planned on a fresh connection, each after a refusal on a used one.
    fresh_tries: int = 0
    #: It waited for another connection after a new one had failed.
    waited_for_others: bool = False
    #: In `time.monotonic()`; a repeat waits for `not_before`.
    ended: float = 0.0
    not_before: float = 0.0

    @property
    def recipients(self) -> tuple[str, ...]:
        """Return all recipients, including those left out of a repeat."""
        return (self.unconfirmed or self).envelope.recipients

    @property
    def repeatable(self) -> bool:
        """Return whether a repeat is safe: the relay knows it by its key.

        A repeat is confirmed as a whole, whichever recipients were refused before, so
        their answers must be known.
        """
        if not self.config.idempotency or self.envelope.idempotency_key is None:
            return False
        known = self.unconfirmed is None or self.unconfirmed.recipients_known
        return known and self.repeats_known

    def begin(self) -> MailTransaction:
        """Return the next mail transaction, to be sent and recorded."""
        return MailTransaction(
            envelope=self.envelope,
            frozen=self.unconfirmed is not None,
            # The answers to several recipients may be lost, and then no repeat is safe.
            repeatable=self.repeatable and len(self.envelope.recipients) == 1,
            # After a failure it is not pipelined behind another message.
            may_follow=self.last is None,
        )

    def resume(self) -> None:
        """Continue with an envelope that was left unconfirmed by an earlier delivery.

        All its recipients were accepted then.
        """
        self.unconfirmed = self.begin()
        accepted = dict.fromkeys(self.envelope.recipients, Reply(250))
        self.unconfirmed.replies = accepted

    def record(
        self,
        transaction: MailTransaction,
        *,
        used: bool = False,
        may_retry: bool = False,
        others_open: bool = False,
    ) -> Decision:
        """Apply the end of a mail transaction; return what comes next.

        `used`: the connection had served before. `may_retry`: a retry after the loss of
        a fresh connection is within the limits. `others_open`: the pool has others that
        could carry the message.
        """
        self.attempts += 1
        self.last = transaction
        self.reused = used
        self.envelope = transaction.envelope
        if self.unconfirmed and transaction.outcome is not Outcome.NOT_SENT:
            self.refused_on_repeat |= {
                address: reply
                for address, reply in transaction.replies.items()
                if reply.negative
            }
        if transaction.outcome is Outcome.SENT:
            self._finish(Outcome.SENT)
            self._add_further(transaction)
            return Decision.FINAL
        if transaction.outcome is Outcome.UNKNOWN and self.unconfirmed:
            self.repeats_known = self.repeats_known and transaction.recipients_known
        elif transaction.outcome is Outcome.UNKNOWN:
            self.unconfirmed = transaction
            # Do not resend to recipients that were refused before the connection was
            # lost: the relay may answer for them as it answers for the others.
            self.envelope = self.envelope.part(1, transaction.not_refused)
        decision = policy.decide(
            self._failure(transaction, may_retry=may_retry, others_open=others_open)
        )
        if decision is Decision.REPEAT:
            self._plan_repeat()
        elif decision is Decision.UNKNOWN:
            self._finish(Outcome.UNKNOWN)
            self._add_further(transaction)
        elif decision in (Decision.FINAL, Decision.GIVE_UP):
            self._finish(Outcome.NOT_SENT)
        self.refused_pipelined |= decision is Decision.ALONE
        self.fresh_tries += decision is Decision.FRESH
        self.waited_for_others |= decision is Decision.WAIT
        return decision

    def fail(self, error: Exception | None) -> None:
        """Give up: UNKNOWN if it may be delivered, else NOT_SENT with `error`."""
        if error is None and self.last and self.last.refused:
            # The refusal was not final: it spoke of the session or of pipelining.
            error = ConnectionLost("interrupted before the message was sent")
        self.error = error
        self._give_up()

    def fail_to_connect(self, error: Exception) -> None:
        """Give up, unless a later repeat may still settle an unknown outcome."""
        if not self.unconfirmed:
            self.fail(error)
        elif self._may_repeat():
            self._plan_repeat()
        else:
            self._finish(Outcome.UNKNOWN)

    def interrupt(self, transaction: MailTransaction) -> None:
        """End with the outcome that is certain now, even within `record()`."""
        recorded = self.last is transaction
        if not recorded:
            self.attempts += 1
            self.last = transaction
        if transaction.outcome is Outcome.SENT:
            self._finish(Outcome.SENT)
            return
        if transaction.outcome is Outcome.UNKNOWN:
            self.unconfirmed = self.unconfirmed or transaction
        if recorded:
            self.fail(None)
        else:
            self._give_up()

    def _failure(
        self, transaction: MailTransaction, *, may_retry: bool, others_open: bool
    ) -> Failure:
        return Failure(
            phase=transaction.phase,
            reply=transaction.reply,
            permanent=transaction.permanent_failure and not transaction.refused,
            unconfirmed=self.unconfirmed is not None,
            pipelined=transaction.pipelined,
            used=self.reused,
            carried=transaction.connection_carried,
            tried_fresh=self.fresh_tries >= policy.MAX_FRESH_TRIES,
            others_open=others_open,
            repeatable=self._may_repeat(),
            may_retry=may_retry,
        )

    def _may_repeat(self) -> bool:
        return (
            self.repeatable
            and self.repeats < policy.MAX_REPEATS
            and policy.backoff(self.repeats + 1) < self.deadline.seconds_left()
        )

    def _plan_repeat(self) -> None:
        self.repeats += 1
        self.not_before = time.monotonic() + policy.backoff(self.repeats)

    def _add_further(self, transaction: MailTransaction) -> None:
        """Add a submission for recipients that need a mail transaction of their own.

        The relay found them too many at once, or refused them for being pipelined.
        """
        first = self.unconfirmed or transaction
        further = [
            address
            for address, reply in first.replies.items()
            if reply.negative
            and (
                policy.limits_recipients(reply)
                or (first.pipelined and policy.proves_intolerance(reply))
            )
        ]
        if further:
            number = len(self.message_submissions) + 1
            self.message_submissions.append(
                Submission(
                    envelope=self.envelope.part(number, further),
                    config=self.config,
                    deadline=self.deadline,
                    message_submissions=self.message_submissions,
                )
            )

    def _give_up(self) -> None:
        self._finish(Outcome.UNKNOWN if self.unconfirmed else Outcome.NOT_SENT)

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.ended = time.monotonic()
        self.done = True  # last, as an interrupt may come before


def submissions(envelopes: Iterable[Envelope], config: RelayConfig) -> list[Submission]:
    """Return the submissions of one message: most often a single one."""
    found: list[Submission] = []
    for envelope in envelopes:
        deadline = Deadline(config.deadline)
        for part in envelope.parts():
            found.append(
                Submission(
                    envelope=part,
                    config=config,
                    deadline=deadline,
                    message_submissions=found,
                )
            )
    return found
