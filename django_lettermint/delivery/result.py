"""What the transactions of a message add up to: its result and its error."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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
from django_lettermint.smtp.replies import MAX_TEXT, Reply

if TYPE_CHECKING:
    from django_lettermint.smtp.attempt import Attempt

    from .submission import Transaction

#: Reply codes that speak of the address itself (RFC 5321 section 4.2.2).
_INVALID_ADDRESS = (501, 553)


def result_of(transactions: Sequence[Transaction]) -> SendResult:
    """Sum up: UNKNOWN if any transaction is, else SENT if any is."""
    first = transactions[0]
    deciding = _deciding(transactions)
    reply = _deciding_reply(deciding)
    return SendResult(
        outcome=deciding.outcome,
        message_id=first.envelope.message_id,
        idempotency_key=first.envelope.idempotency_key,
        recipients=dict(_recipients(transactions)),
        code=reply.code if reply else None,
        text=reply.text if reply else "",
        phase=_phase(deciding),
        attempts=sum(each.attempts for each in transactions),
        elapsed=_elapsed(transactions),
        connection_reused=deciding.reused,
    )


def error_of(
    transactions: Sequence[Transaction], *, key_given: bool = False
) -> Exception | None:
    """Return the error that the message ends with, or None if it was sent."""
    deciding = _deciding(transactions)
    if deciding.outcome is Outcome.SENT:
        return None
    if deciding.outcome is Outcome.UNKNOWN:
        return _unknown(transactions)
    if deciding.error:
        # One connection error can end many messages; each gets a copy for its result.
        return copy.copy(deciding.error)
    attempt = deciding.last
    if attempt and attempt.reply:
        return _refused(attempt, attempt.reply, key_given=key_given)
    return _lost(deciding)


def _deciding(transactions: Sequence[Transaction]) -> Transaction:
    order = (Outcome.UNKNOWN, Outcome.SENT, Outcome.NOT_SENT)
    return min(transactions, key=lambda each: order.index(each.outcome))


def _deciding_reply(transaction: Transaction) -> Reply | None:
    if transaction.outcome is Outcome.UNKNOWN:
        return None  # whatever a repeat was told
    error = transaction.error
    if error is None:
        return transaction.last.reply if transaction.last else None
    # Refused before there was a transaction, at the greeting or the login.
    if isinstance(error, LettermintError) and error.smtp_code:
        return Reply(error.smtp_code, (error.smtp_error.decode(),))
    return None


def _elapsed(transactions: Sequence[Transaction]) -> float:
    starts = [each.deadline.started for each in transactions if each.deadline.started]
    return max(each.ended for each in transactions) - min(starts) if starts else 0.0


def _phase(transaction: Transaction) -> Phase:
    if transaction.outcome is Outcome.UNKNOWN:
        return Phase.COMMIT
    if transaction.error:
        return phase_of(transaction.error)
    if transaction.last:
        return transaction.last.phase
    # Interrupted: its time runs from the moment it looks for a connection.
    return Phase.CONNECT if transaction.deadline.started else Phase.POOL


def phase_of(error: BaseException | None) -> Phase:
    """Return the step at which an error ended a message that had no transaction."""
    if isinstance(error, ConnectFailed) and error.phase:
        return error.phase
    matches = (phase for kind, phase in _PHASES if isinstance(error, kind))
    return next(matches, Phase.MESSAGE)


def recipients_of(transaction: Transaction) -> tuple[str, ...]:
    """Return all its recipients, those left out of a repeat included."""
    first = transaction.unconfirmed or transaction.last
    return (first or transaction).envelope.recipients


def _recipients(
    transactions: Sequence[Transaction],
) -> Iterator[tuple[str, RecipientResult]]:
    for transaction in transactions:
        for who in recipients_of(transaction):
            yield who, _recipient(transaction, who)


def _recipient(transaction: Transaction, who: str) -> RecipientResult:
    first = transaction.unconfirmed or transaction.last
    refusal = first.replies.get(who) if first else None
    if refusal and refusal.negative:
        return _from_reply(refusal)
    if transaction.outcome is Outcome.UNKNOWN:
        return RecipientResult(
            status="unknown", text="no reply to the end of the message"
        )
    last = transaction.last
    answer = last.replies.get(who) if last else None
    if transaction.outcome is Outcome.SENT:
        if answer and answer.negative:
            # Refused on a repeat: the try before it may have been delivered.
            return RecipientResult(status="unknown", text=str(answer))
        return _from_reply(answer) if answer else RecipientResult(status="queued")
    if last and last.reply:
        return _from_reply(last.reply, about_address=False)
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


def _unknown(transactions: Sequence[Transaction]) -> DeliveryUnknown:
    unknown = [each for each in transactions if each.outcome is Outcome.UNKNOWN]
    first = unknown[0]
    reason = _why(first.unconfirmed.failure if first.unconfirmed else None)
    if first.last and first.last.reply:
        reason += f"; a repeat was answered by {first.last.reply}"
    repeatable = all(each.repeatable for each in unknown)
    advice = (
        "EmailBackend.repeat(error.envelopes) is safe for 24 hours from the first try"
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


def _lost(transaction: Transaction) -> Exception:
    attempt = transaction.last
    if attempt is None:
        return ConnectionLost("interrupted before the message was sent")
    if isinstance(attempt.failure, LettermintInvalidMessage):
        return attempt.failure
    return ConnectionLost(
        f"the connection failed at {attempt.phase.upper()} ({_why(attempt.failure)}; "
        f"attempts: {transaction.attempts}): the message was not sent; send it again"
    )


def _refused(attempt: Attempt, reply: Reply, *, key_given: bool) -> LettermintError:
    what = f"{reply}; {_advice(attempt, reply, key_given=key_given)}"
    error: LettermintError
    if attempt.phase is Phase.MAIL:
        error = SenderRefused(f"the relay refused the sender at MAIL: {what}")
        error.sender = attempt.envelope.mail_from
    elif attempt.phase is Phase.RCPT:
        count = len(attempt.replies)
        everybody = f"all {count} recipients" if count > 1 else "the recipient"
        error = RecipientsRefused(f"the relay refused {everybody} at RCPT: {what}")
        error.recipients = {
            who: (answer.code, answer.text.encode())
            for who, answer in attempt.replies.items()
        }
    else:
        step = _STEPS[attempt.phase]
        error = MessageRefused(f"the relay refused the message at {step}: {what}")
    return error.with_reply(reply.code, reply.text)


def _advice(attempt: Attempt, reply: Reply, *, key_given: bool) -> str:
    if reply.code < 500:
        return "send it again later"
    if attempt.phase is Phase.MAIL:
        return "is the domain verified in the Lettermint dashboard?"
    if attempt.phase is Phase.RCPT:
        return "correct the address"
    if key_given:
        return (
            "its idempotency key is your own: if it was used before, the message may "
            "have been sent then"
        )
    return "correct the message, sending it as it is will not help"


def _why(failure: BaseException | None) -> str:
    return str(failure or "interrupted")[:MAX_TEXT]


_STEPS = {
    Phase.DATA: "DATA",
    Phase.CONTENT: "DATA, before its end",
    Phase.COMMIT: "its end",
}
_PHASES: tuple[tuple[type[Exception], Phase], ...] = (
    (ConnectFailed, Phase.CONNECT),
    (TLSFailed, Phase.TLS),
    (AuthenticationFailed, Phase.AUTH),
    (PoolTimeout, Phase.POOL),
    (PoolClosed, Phase.POOL),
    (ConnectionLost, Phase.CONNECT),
)
