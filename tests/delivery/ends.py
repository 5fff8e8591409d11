"""Submissions without a network, and the ways in which their transactions end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_lettermint.conf import backend_config
from django_lettermint.delivery import Submission, submissions
from django_lettermint.results import Phase
from django_lettermint.smtp import Reply
from tests.sending import envelope

if TYPE_CHECKING:
    from django_lettermint.delivery.policy import Decision
    from django_lettermint.exceptions import LettermintInvalidMessage

OK = Reply(250, ("ok",))


def several(*keys: str, idempotency: bool = True) -> list[Submission]:
    """Return one submission for each recipient, named like its key."""
    options = {"api_token": "t", "host": "127.0.0.1", "idempotency": idempotency}
    return submissions(
        [envelope(f"{key}@x.test", idempotency_key=key) for key in keys],
        backend_config(options).relay,
    )


def one(*to: str, idempotency: bool = True) -> Submission:
    """Return a submission with the key `k`."""
    (found,) = several("k", idempotency=idempotency)
    found.envelope = envelope(*(to or ("a@x.test",)), idempotency_key="k")
    return found


def sent(
    submission: Submission, *, pipelined: bool = False, **replies: Reply
) -> Decision:
    """Let it be sent; `replies` are those to RCPT, by the name of the mailbox."""
    transaction = submission.begin()
    transaction.pipelined = pipelined
    transaction.replies = _replies(submission, replies)
    transaction.phase, transaction.reply = Phase.DONE, Reply(250, ("queued",))
    return submission.record(transaction)


def refused(
    submission: Submission,
    phase: Phase = Phase.COMMIT,
    code: int = 550,
    *,
    pipelined: bool = False,
    carried: bool = False,
    **replies: Reply,
) -> Decision:
    """Let it be refused; at RCPT, that is each recipient."""
    transaction = submission.begin()
    transaction.pipelined, transaction.connection_carried = pipelined, carried
    transaction.replies = _replies(submission, replies)
    if phase is Phase.RCPT:
        transaction.replies = dict.fromkeys(transaction.replies, Reply(code))
    transaction.refuse(phase, Reply(code, ("no",)))
    return submission.record(transaction)


def lost(
    submission: Submission, phase: Phase = Phase.COMMIT, **replies: Reply
) -> Decision:
    """Let the connection be lost at this step."""
    return failed(submission, phase, ConnectionResetError("gone"), **replies)


def failed(
    submission: Submission,
    phase: Phase,
    failure: OSError | LettermintInvalidMessage,
    **replies: Reply,
) -> Decision:
    """Let it fail at this step for this reason."""
    transaction = submission.begin()
    transaction.phase, transaction.failure = phase, failure
    transaction.replies = _replies(submission, replies)
    return submission.record(transaction, may_retry=True)


def _replies(submission: Submission, named: dict[str, Reply]) -> dict[str, Reply]:
    return {
        who: named.get(who.partition("@")[0], OK)
        for who in submission.envelope.recipients
    }
