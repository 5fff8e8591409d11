"""A mail transaction: what its replies, and their absence, mean for the message."""

from __future__ import annotations

from typing import Any

import pytest

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import MailTransaction, Reply
from tests.sending import envelope, transaction

ACCEPTED, REFUSED = Reply(250, ("2.1.5 ok",)), Reply(550, ("5.1.1 unknown",))
LATER, NO_ANSWER = Reply(451, ("4.3.0 later",)), Reply(451, ("4.4.2 no answer",))


def answered(*replies: Reply | None) -> MailTransaction:
    """Return a transaction with a recipient for each reply; None is no reply."""
    one = transaction(*(f"{number}@x.test" for number in range(len(replies))))
    for who, reply in zip(one.envelope.recipients, replies, strict=True):
        if reply:
            one.replies[who] = reply
    return one


@pytest.mark.parametrize(
    ("replies", "known"),
    [
        ([None], True),
        ([ACCEPTED, ACCEPTED], True),
        ([ACCEPTED, REFUSED], True),
        ([ACCEPTED, REFUSED, ACCEPTED], True),
        ([None, None], False),
        ([ACCEPTED, None], False),
        ([None, REFUSED, None], False),
        # The only one that is left has the same end as the message.
        ([None, REFUSED], True),
    ],
)
def test_the_end_of_each_recipient_is_known_if_all_are_answered_or_one_is_left(
    replies: list[Reply | None], known: Any
) -> None:
    assert answered(*replies).recipients_known is known


def test_recipients_without_a_reply_are_neither_accepted_nor_refused() -> None:
    one = answered(ACCEPTED, REFUSED, None)
    assert one.accepted == ("0@x.test",)
    assert one.not_refused == ("0@x.test", "2@x.test")


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        ([REFUSED], 550),
        ([REFUSED, LATER], 451),
        ([LATER, REFUSED], 451),
        ([REFUSED, ACCEPTED], None),
        ([REFUSED, None], None),
    ],
)
def test_a_message_is_refused_once_all_recipients_are(
    replies: list[Reply | None], code: int | None
) -> None:
    one = answered(*replies)
    one.refuse_without_recipients()
    assert (one.reply.code if one.reply else None) == code
    assert one.refused is (code is not None)
    assert one.phase is (Phase.RCPT if code else Phase.MAIL)


def test_the_first_refusal_is_the_reason() -> None:
    one = transaction()
    one.refuse(Phase.MAIL, LATER)
    one.refuse(Phase.DATA, REFUSED)
    assert (one.phase, one.reply) == (Phase.MAIL, LATER)


@pytest.mark.parametrize(
    ("phase", "reply", "failure", "outcome", "permanent"),
    [
        (Phase.MAIL, None, None, Outcome.NOT_SENT, False),
        (Phase.CONTENT, None, OSError(), Outcome.NOT_SENT, False),
        (Phase.COMMIT, None, OSError(), Outcome.UNKNOWN, False),
        (Phase.COMMIT, LATER, None, Outcome.NOT_SENT, False),
        (Phase.COMMIT, REFUSED, None, Outcome.NOT_SENT, True),
        (Phase.DATA, REFUSED, None, Outcome.NOT_SENT, True),
        (Phase.DONE, ACCEPTED, None, Outcome.SENT, False),
        (Phase.MESSAGE, None, LettermintInvalidMessage("x"), Outcome.NOT_SENT, True),
    ],
)
def test_the_outcome_follows_from_the_phase_and_the_reply(
    phase: Phase,
    reply: Reply | None,
    failure: OSError | LettermintInvalidMessage | None,
    outcome: Outcome,
    permanent: Any,
) -> None:
    one = MailTransaction(envelope=envelope(), failure=failure)
    if reply and reply.negative:
        one.refuse(phase, reply)
    one.phase, one.reply = phase, reply
    assert one.outcome is outcome
    assert one.permanent_failure is permanent


def test_a_loss_after_a_refusal_leaves_the_refusal() -> None:
    one = answered(REFUSED)
    one.refuse_without_recipients()
    one.lose(OSError("lost"))
    assert (one.reply, one.failure) == (REFUSED, None)
    assert one.not_refused == ()


def test_a_loss_takes_back_refusals_that_announced_it() -> None:
    error = OSError("lost")
    one = answered(REFUSED, NO_ANSWER)
    one.refuse_without_recipients()
    one.lose(error)
    assert (one.reply, one.failure) == (None, error)
    assert one.not_refused == ("1@x.test",)


def test_a_loss_after_the_confirmation_takes_nothing_back() -> None:
    one = answered(ACCEPTED, NO_ANSWER)
    one.phase, one.reply = Phase.DONE, ACCEPTED
    one.lose(OSError("lost"))
    assert (one.outcome, one.failure) == (Outcome.SENT, None)
    assert one.not_refused == ("0@x.test",)


def test_a_loss_after_the_final_reply_takes_nothing_back() -> None:
    one = answered(ACCEPTED, NO_ANSWER)
    one.refuse(Phase.COMMIT, NO_ANSWER)
    one.lose(OSError("lost"))
    assert (one.reply, one.failure) == (NO_ANSWER, None)
    assert one.not_refused == ("0@x.test",)
