"""The result and the error of a message, built from its submissions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    LettermintInvalidMessage,
    MessageRefused,
    PoolClosed,
    PoolTimeout,
    RecipientsRefused,
    SenderRefused,
    TLSFailed,
)
from django_lettermint.results import Outcome, Phase, RecipientResult, SendResult
from django_lettermint.smtp import MAX_TEXT, Reply, ServerClosing

from .advice import advise

if TYPE_CHECKING:
    from django_lettermint.smtp import MailTransaction

    from .submission import Submission

#: Reply codes that speak of the address itself (RFC 5321 section 4.2.2).
_INVALID_ADDRESS = (501, 553)
#: The message ends with the first of these that one of its submissions has.
_PRECEDENCE = (Outcome.UNKNOWN, Outcome.SENT, Outcome.NOT_SENT)
#: The steps of a message as errors name them.
_STEPS = {
    Phase.DATA: "DATA",
    Phase.CONTENT: "DATA, before its end",
    Phase.COMMIT: "its end",
}
#: The phase of an error without a mail transaction.
_PHASES: tuple[tuple[type[Exception], Phase], ...] = (
    (ConnectFailed, Phase.CONNECT),
    (TLSFailed, Phase.TLS),
    (AuthenticationFailed, Phase.AUTH),
    (PoolTimeout, Phase.POOL),
    (PoolClosed, Phase.POOL),
    (ConnectionLost, Phase.CONNECT),
)


def build_result(submissions: Sequence[Submission]) -> SendResult:
    """Return the result: UNKNOWN if any submission is, else SENT if any is."""
    first = submissions[0]
    decisive = min(submissions, key=lambda each: _PRECEDENCE.index(each.outcome))
    phase, reply = _last_step(decisive)
    starts = [each.deadline.started for each in submissions if each.deadline.started]
    ended = max(each.ended for each in submissions)
    return SendResult(
        outcome=decisive.outcome,
        message_id=first.envelope.message_id,
        idempotency_key=first.envelope.idempotency_key,
        recipients={
            address: _recipient(submission, address)
            for submission in submissions
            for address in submission.recipients
        },
        code=reply.code if reply else None,
        text=reply.text if reply else "",
        phase=phase,
        attempts=sum(each.attempts for each in submissions),
        elapsed=ended - min(starts) if starts else 0.0,
        connection_reused=decisive.reused,
    )


def build_error(
    submissions: Sequence[Submission], *, has_caller_key: bool = False
) -> Exception | None:
    """Return the error that the message ends with, or None if it was sent."""
    decisive = min(submissions, key=lambda each: _PRECEDENCE.index(each.outcome))
    if decisive.outcome is Outcome.SENT:
        return None
    if decisive.outcome is Outcome.UNKNOWN:
        return _unknown(submissions)
    if decisive.error:
        # An error can end many messages: each gets a copy, with its own result.
        return copy.copy(decisive.error)
    last = decisive.last
    if last and last.reply:
        return _refused(last, last.reply, has_caller_key=has_caller_key)
    return _lost(decisive)


def _last_step(submission: Submission) -> tuple[Phase, Reply | None]:
    """Return how far a submission came, and the reply that decided its outcome."""
    error, last = submission.error, submission.last
    if submission.outcome is Outcome.UNKNOWN:
        return Phase.COMMIT, None  # whatever the answer to a repeat was
    if error:
        reply = None
        # Refused before there was a mail transaction, at the greeting or the login.
        if isinstance(error, LettermintError) and error.smtp_code:
            reply = Reply(error.smtp_code, (error.smtp_error.decode(),))
        return _phase_of(error), reply
    if last:
        if isinstance(last.failure, ServerClosing):
            return last.phase, last.failure.reply
        return last.phase, last.reply
    # It was interrupted; the time starts when a connection is asked for.
    return (Phase.CONNECT if submission.deadline.started else Phase.POOL), None


def _phase_of(error: Exception) -> Phase:
    """Return the step of an error that ended a message without a mail transaction."""
    if isinstance(error, ConnectFailed) and error.phase:
        return error.phase
    matches = (phase for kind, phase in _PHASES if isinstance(error, kind))
    return next(matches, Phase.MESSAGE)


def _recipient(submission: Submission, address: str) -> RecipientResult:
    first, last = submission.unconfirmed or submission.last, submission.last
    refusal = first.replies.get(address) if first else None
    if refusal and refusal.negative:
        return _from_reply(refusal)
    if submission.outcome is Outcome.UNKNOWN:
        return RecipientResult(
            status="unknown", text="no reply to the end of the message"
        )
    if submission.outcome is Outcome.SENT:
        if refused := submission.refused_on_repeat.get(address):
            return RecipientResult(status="unknown", text=str(refused))
        answer = last.replies.get(address) if last else None
        return _from_reply(answer) if answer else RecipientResult(status="queued")
    _, reply = _last_step(submission)
    if reply:
        return _from_reply(reply, about_address=False)
    return RecipientResult(status="failed", text="not sent")


def _from_reply(reply: Reply, *, about_address: bool = True) -> RecipientResult:
    if reply.positive:
        status = "queued"
    elif about_address and reply.code in _INVALID_ADDRESS:
        status = "invalid"
    else:
        status = "failed" if reply.code < 500 else "rejected"
    return RecipientResult(
        status=status,
        code=reply.code,
        enhanced_code=reply.enhanced_code,
        text=reply.text,
    )


def _unknown(submissions: Sequence[Submission]) -> DeliveryUnknown:
    unknown = [each for each in submissions if each.outcome is Outcome.UNKNOWN]
    first = unknown[0]
    reason = _why(first.unconfirmed.failure if first.unconfirmed else None)
    if first.last and first.last.reply:
        reason += f"; a repeat was answered by {first.last.reply}"
    repeatable = all(each.repeatable for each in unknown)
    advice = (
        "`EmailBackend.repeat()` of its envelopes is safe for 24 hours from the first try"
        if repeatable
        else "look it up in the dashboard before you send it again"
    )
    error = DeliveryUnknown(
        "the end of the message was written, but no complete reply came back "
        f"({reason}): it may or may not have been delivered; {advice}"
    )
    error.envelopes = [each.envelope for each in unknown]
    error.repeatable = repeatable
    return error


def _lost(submission: Submission) -> Exception:
    last = submission.last
    if last is None:
        return ConnectionLost("interrupted before the message was sent")
    if isinstance(last.failure, LettermintInvalidMessage):
        return last.failure
    error = ConnectionLost(
        f"the connection failed at {last.phase.upper()} ({_why(last.failure)}; "
        f"attempts: {submission.attempts}): the message was not sent; send it again"
    )
    error.timed_out = isinstance(last.failure, TimeoutError)
    if isinstance(last.failure, ServerClosing):
        error.with_reply(last.failure.reply.code, last.failure.reply.text)
    return error


def _refused(
    last: MailTransaction, reply: Reply, *, has_caller_key: bool
) -> LettermintError:
    what = f"{reply}; {advise(reply, last.phase, has_caller_key=has_caller_key)}"
    error: LettermintError
    if last.phase is Phase.MAIL:
        error = SenderRefused(f"the relay refused the message at MAIL: {what}")
        error.sender = last.envelope.mail_from
    elif last.phase is Phase.RCPT:
        count = len(last.replies)
        recipients = f"all {count} recipients" if count > 1 else "the recipient"
        error = RecipientsRefused(f"the relay refused {recipients} at RCPT: {what}")
        error.recipients = {
            address: (answer.code, answer.text.encode())
            for address, answer in last.replies.items()
        }
    else:
        step = _STEPS[last.phase]
        error = MessageRefused(f"the relay refused the message at {step}: {what}")
    return error.with_reply(reply.code, reply.text)


def _why(failure: BaseException | None) -> str:
    return str(failure or "interrupted")[:MAX_TEXT]
