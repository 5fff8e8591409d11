"""A message on its way through a queue: transactions into JSON and back.

The JSON form has a version of its own and, like the envelopes in it, no secrets: whoever
sends it reads the relay's settings anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from .delivery import result as verdict
from .delivery.submission import Deadline, Transaction
from .envelope import Envelope
from .exceptions import ConnectionLost, LettermintError
from .results import Outcome, Phase
from .smtp.attempt import Attempt
from .smtp.replies import Reply

if TYPE_CHECKING:
    from .conf import RelayConfig

VERSION = 1


def check_version(form: object) -> None:
    """Raise ValueError unless this release can read the form."""
    version = form.get("version") if isinstance(form, dict) else None
    if version != VERSION:
        raise ValueError(
            f"a queued message of version {version!r}: this release of "
            f"django-lettermint-smtp reads version {VERSION}; update the workers first, "
            "then requeue the task"
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Queued:
    """One message with all its transactions, those that have ended included."""

    transactions: list[Transaction]
    #: The alias of the mailer that sends; None: the backend made from the settings.
    using: str | None
    #: In Unix time; no attempt begins later.
    give_up_at: float
    #: How often it was put back into the queue.
    tries: int = 0
    #: The idempotency key is the caller's.
    key_given: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        # Most often all transactions share one content, which may be large.
        content = self.transactions[0].envelope.to_json()["content"]
        return {
            "version": VERSION,
            "using": self.using,
            "give_up_at": self.give_up_at,
            "tries": self.tries,
            "key_given": self.key_given,
            "content": content,
            "transactions": [_form(each, content) for each in self.transactions],
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any], config: RelayConfig) -> Self:
        """Read the form that `to_json()` made; raise ValueError for any other."""
        check_version(form)
        transactions: list[Transaction] = []
        deadline = Deadline(config.deadline)
        try:
            for each in form["transactions"]:
                transaction = Transaction(
                    envelope=_envelope(each, form["content"], transactions),
                    config=config,
                    deadline=deadline,
                    siblings=transactions,
                    attempts=int(each["attempts"]),
                )
                if "outcome" in each:
                    _restore(transaction, each)
                transactions.append(transaction)
            if not transactions:
                raise LookupError("no transactions")
            return cls(
                transactions=transactions,
                using=form["using"],
                give_up_at=float(form["give_up_at"]),
                tries=int(form["tries"]),
                key_given=form["key_given"],
            )
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"not a queued message: {error!r}") from error

    @property
    def may_change(self) -> bool:
        """Return whether another try may change what became of the message."""
        return any(map(self._may_change, self.transactions))

    def next_try(self) -> Self:
        """Return what to send next time: nothing but what is undone."""
        transactions: list[Transaction] = []
        copies = [replace(each, siblings=transactions) for each in self.transactions]
        transactions += copies
        for each, copied in zip(self.transactions, copies, strict=True):
            if each.outcome is Outcome.UNKNOWN:
                continue
            undone = self._undone(each)
            if undone == each.envelope.recipients:
                copied.last = copied.error = None
            elif self._may_change(each):
                # A subset of the recipients: a transaction with a key of its own.
                number = len(transactions) + 1
                further = Transaction(
                    envelope=each.envelope.part(number, undone),
                    config=each.config,
                    deadline=each.deadline,
                    siblings=transactions,
                )
                transactions.append(further)
        return replace(self, transactions=transactions, tries=self.tries + 1)

    def expire(self, *, begun: bool) -> None:
        """End what is undone because its time is over.

        What was `begun`, by a worker that did not come to its end, may be out.
        """
        late = "the message was in the queue for longer than `give_up_after`"
        for each in self.transactions:
            if each.done:
                continue
            if begun and each.unconfirmed is None:
                each.unconfirmed = Attempt(
                    envelope=each.envelope,
                    phase=Phase.COMMIT,
                    failure=OSError(f"a worker did not come back from it, and {late}"),
                )
            # The relay may have forgotten the key: what is unknown is not to be repeated.
            each.config = replace(each.config, idempotency=False)
            each.fail(ConnectionLost(f"{late}: it was not sent; see the workers"))

    def _may_change(self, transaction: Transaction) -> bool:
        if transaction.outcome is Outcome.UNKNOWN:
            last = transaction.last
            # A 5yz to a repeat says that the key was used: it will say so again.
            return transaction.repeatable and not (last and last.hopeless)
        if not self._undone(transaction):
            return False
        error = verdict.error_of([transaction])
        return error is None or (isinstance(error, LettermintError) and error.transient)

    def _undone(self, transaction: Transaction) -> tuple[str, ...]:
        """Return the recipients who have not got it, and are not refused for good."""
        answers = verdict.result_of([transaction]).recipients
        failed = {who for who, answer in answers.items() if answer.status == "failed"}
        # The relay found some too many, or they were tried again: they stand further on.
        position = self.transactions.index(transaction) + 1
        for later in self.transactions[position:]:
            failed.difference_update(later.envelope.recipients)
        return tuple(who for who in answers if who in failed)


def _form(transaction: Transaction, content: str) -> dict[str, Any]:
    envelope = transaction.envelope.to_json()
    if envelope["content"] == content:
        del envelope["content"]
    form = {"envelope": envelope, "attempts": transaction.attempts}
    attempt = transaction.unconfirmed or transaction.last
    if attempt is None:
        return form
    return {
        **form,
        "outcome": transaction.outcome.value,
        "recipients": list(attempt.envelope.recipients),
        "phase": attempt.phase.value,
        "replies": {who: _reply_form(each) for who, each in attempt.replies.items()},
        "reply": attempt.reply and _reply_form(attempt.reply),
        "failure": attempt.failure and str(attempt.failure),
    }


def _envelope(
    form: Mapping[str, Any], content: str, others: list[Transaction]
) -> Envelope:
    envelope = Envelope.from_json({"content": content, **form["envelope"]})
    if others and others[0].envelope.content == envelope.content:
        envelope = replace(envelope, content=others[0].envelope.content)
    return envelope


def _restore(transaction: Transaction, form: Mapping[str, Any]) -> None:
    """Let a transaction stand where it stood after its last attempt."""
    failure, reply = form["failure"], form["reply"]
    recipients = tuple(form["recipients"])
    attempt = Attempt(
        envelope=replace(transaction.envelope, recipients=recipients),
        phase=Phase(form["phase"]),
        replies={who: _reply(each) for who, each in form["replies"].items()},
        reply=reply and _reply(reply),
        failure=failure and OSError(failure),
    )
    transaction.outcome = Outcome(form["outcome"])
    if transaction.outcome is Outcome.UNKNOWN:
        transaction.unconfirmed = attempt
        transaction.done = not transaction.repeatable
    else:
        transaction.last = attempt
        transaction.done = True


def _reply_form(reply: Reply) -> list[Any]:
    return [reply.code, reply.text]


def _reply(form: list[Any]) -> Reply:
    code, text = form
    return Reply(int(code), (text,))
