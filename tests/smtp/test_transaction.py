"""A mail transaction: what its replies, and their absence, mean for the message."""

from __future__ import annotations

from typing import Any

import pytest

from django_lettermint.results import Phase
from django_lettermint.smtp import MailTransaction, Reply
from tests.sending import transaction

ACCEPTED, REFUSED = Reply(250, ("2.1.5 ok",)), Reply(550, ("5.1.1 unknown",))
LATER, NO_ANSWER = Reply(451, ("4.3.0 later",)), Reply(451, ("4.4.2 no answer",))


def answered(*replies: Reply | None) -> MailTransaction:
    """Return a transaction with a recipient for each reply; None is no reply."""
    one = transaction(*(f"{number}@x.test" for number in range(len(replies))))
    for to, reply in zip(one.envelope.recipients, replies, strict=True):
        if reply:
            one.replies[to] = reply
    return one


@pytest.mark.parametrize(
    ("replies", "known"),
    [
        ([None], True),
        ([ACCEPTED, REFUSED, ACCEPTED], True),
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


LOSS = OSError("lost")


@pytest.mark.parametrize(
    ("replies", "end", "reply", "failure", "left"),
    [
        ([REFUSED], None, REFUSED, None, ""),
        # The refusal by X.4.2 announced the loss.
        ([REFUSED, NO_ANSWER], None, None, LOSS, "1"),
        # After the final reply it is about the recipient.
        ([ACCEPTED, NO_ANSWER], ACCEPTED, ACCEPTED, None, "0"),
        ([ACCEPTED, NO_ANSWER], NO_ANSWER, NO_ANSWER, None, "0"),
        ([ACCEPTED, None], None, None, LOSS, "01"),
    ],
)
def test_a_loss_takes_back_only_the_refusals_that_announced_it(
    replies: list[Reply | None],
    end: Reply | None,
    reply: Reply | None,
    failure: OSError | None,
    left: str,
) -> None:
    one = answered(*replies)
    one.refuse_without_recipients()
    if end and end.positive:
        one.phase, one.reply = Phase.DONE, end
    elif end:
        one.refuse(Phase.COMMIT, end)
    one.lose(LOSS)
    assert (one.reply, one.failure) == (reply, failure)
    assert one.not_refused == tuple(f"{number}@x.test" for number in left)
    assert one.refused is bool(reply and reply.negative)
