"""A message in a queue: its submissions, to JSON and back.

The JSON form has a version and holds no secrets: the worker reads the relay's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from django_lettermint.delivery import (
    Deadline,
    Submission,
    build_error,
    build_result,
    later_may_help,
)
from django_lettermint.envelope import Envelope
from django_lettermint.exceptions import ConnectionLost
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import MailTransaction, Reply

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

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


def tenant_in(form: Mapping[str, Any]) -> str | None:
    """Return the tenant of a form, unchecked; raise ValueError if it is no message."""
    tenant: str | None
    try:
        envelopes = [each["envelope"] for each in form["transactions"]]
        (tenant,) = {each.get("tenant") for each in envelopes} or {None}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"not a queued message: {error!r}") from error
    return tenant


@dataclass(slots=True, kw_only=True, eq=False)
class QueuedMessage:
    """A message with all its submissions, including those that have ended."""

    submissions: list[Submission]
    #: The alias of the mailer that sends; None: the backend made from the settings.
    using: str | None
    #: Unix time after which no attempt begins.
    give_up_at: float
    #: How many times it was put back into the queue.
    tries: int = 0
    #: Whether the caller chose the idempotency key.
    has_caller_key: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types."""
        # Usually all submissions share one content, which may be large.
        content = self.submissions[0].envelope.to_json()["content"]
        return {
            "version": VERSION,
            "using": self.using,
            "give_up_at": self.give_up_at,
            "tries": self.tries,
            "key_given": self.has_caller_key,
            "content": content,
            "transactions": [_form(each, content) for each in self.submissions],
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any], config: RelayConfig) -> Self:
        """Read the form that `to_json()` made; raise ValueError for any other."""
        check_version(form)
        submissions: list[Submission] = []
        deadline = Deadline(config.deadline)
        try:
            for each in form["transactions"]:
                submission = Submission(
                    envelope=_envelope(each, form["content"], submissions),
                    config=config,
                    deadline=deadline,
                    message_submissions=submissions,
                    attempts=int(each["attempts"]),
                )
                if "outcome" in each:
                    _restore(submission, each)
                submissions.append(submission)
            if not submissions:
                raise LookupError("no transactions")
            return cls(
                submissions=submissions,
                using=form["using"],
                give_up_at=float(form["give_up_at"]),
                tries=int(form["tries"]),
                has_caller_key=form["key_given"],
            )
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"not a queued message: {error!r}") from error

    @property
    def may_change(self) -> bool:
        """Return whether another try may change the outcome."""
        return any(map(self._may_change, self.submissions))

    def next_try(self) -> Self:
        """Return the message for the next try, which sends only what is not done."""
        submissions: list[Submission] = []
        copies = [
            replace(each, message_submissions=submissions) for each in self.submissions
        ]
        submissions += copies
        for each, copied in zip(self.submissions, copies, strict=True):
            if each.outcome is Outcome.UNKNOWN:
                continue
            undone = self._undone(each)
            if undone == each.envelope.recipients:
                copied.last = copied.error = None
            elif self._may_change(each):
                # A subset of the recipients needs another key.
                number = len(submissions) + 1
                further = Submission(
                    envelope=each.envelope.part(number, undone),
                    config=each.config,
                    deadline=each.deadline,
                    message_submissions=submissions,
                )
                submissions.append(further)
        return replace(self, submissions=submissions, tries=self.tries + 1)

    def expire(self, *, started: bool) -> None:
        """End all submissions that are not done, because they have expired.

        If a worker has `started` the message and never finished, the outcome of those
        that have no result is unknown.
        """
        late = "the message was in the queue for longer than `give_up_after`"
        for each in self.submissions:
            if each.done:
                continue
            if started and each.unconfirmed is None:
                each.unconfirmed = MailTransaction(
                    envelope=each.envelope,
                    phase=Phase.COMMIT,
                    failure=OSError(
                        f"a worker began it and never finished, and {late}"
                    ),
                )
            # The relay may have forgotten the key, so that a repeat would be a
            # duplicate.
            each.config = replace(each.config, idempotency=False)
            each.fail(ConnectionLost(f"{late}: it was not sent; see the workers"))

    def _may_change(self, submission: Submission) -> bool:
        last = submission.last
        unknown = submission.outcome is Outcome.UNKNOWN
        return (unknown or bool(self._undone(submission))) and later_may_help(
            build_error([submission]),
            unconfirmed=unknown,
            repeatable=submission.repeatable,
            permanent=last is not None and last.permanent_failure,
        )

    def _undone(self, submission: Submission) -> tuple[str, ...]:
        """Return the recipients that neither got the message nor were rejected."""
        answers = build_result([submission]).recipients
        failed = {
            address for address, answer in answers.items() if answer.status == "failed"
        }
        # Those beyond the relay's limit, and those tried again, are in a later
        # submission.
        position = self.submissions.index(submission) + 1
        for later in self.submissions[position:]:
            failed.difference_update(later.envelope.recipients)
        return tuple(address for address in answers if address in failed)


def _form(submission: Submission, content: str) -> dict[str, Any]:
    envelope = submission.envelope.to_json()
    if envelope["content"] == content:
        del envelope["content"]
    form = {"envelope": envelope, "attempts": submission.attempts}
    transaction = submission.unconfirmed or submission.last
    if transaction is None:
        return form
    return {
        **form,
        "outcome": submission.outcome.value,
        "recipients": list(transaction.envelope.recipients),
        "phase": transaction.phase.value,
        "replies": {
            address: _reply_form(each) for address, each in transaction.replies.items()
        },
        "reply": transaction.reply and _reply_form(transaction.reply),
        "failure": transaction.failure and str(transaction.failure),
    }


def _envelope(
    form: Mapping[str, Any], content: str, others: list[Submission]
) -> Envelope:
    envelope = Envelope.from_json({"content": content, **form["envelope"]})
    # The parts of a message share its octets, which may be large.
    for shared in (each.envelope for each in others[:1]):
        if (shared.header, shared.body) == (envelope.header, envelope.body):
            return replace(envelope, header=shared.header, body=shared.body)
    return envelope


def _restore(submission: Submission, form: Mapping[str, Any]) -> None:
    """Put a submission back where it was after its last mail transaction."""
    failure, reply = form["failure"], form["reply"]
    recipients = tuple(form["recipients"])
    transaction = MailTransaction(
        envelope=replace(submission.envelope, recipients=recipients),
        phase=Phase(form["phase"]),
        replies={address: _reply(each) for address, each in form["replies"].items()},
        reply=reply and _reply(reply),
        failure=failure and OSError(failure),
    )
    submission.outcome = Outcome(form["outcome"])
    if submission.outcome is Outcome.UNKNOWN:
        submission.unconfirmed = transaction
        submission.done = not submission.repeatable
    else:
        submission.last = transaction
        submission.done = True


def _reply_form(reply: Reply) -> list[Any]:
    return [reply.code, reply.text]


def _reply(form: list[Any]) -> Reply:
    code, text = form
    return Reply(int(code), (text,))
