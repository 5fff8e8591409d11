"""One envelope's way over several mail transactions, without a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from django_lettermint.conf import backend_config
from django_lettermint.delivery import Deadline, Submission, policy, submissions
from django_lettermint.delivery.policy import Decision
from django_lettermint.envelope import derived_key
from django_lettermint.exceptions import ConnectFailed, ConnectionLost
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import Reply
from tests.delivery.ends import OK, lost, one, refused, sent
from tests.sending import envelope

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN
NO = Reply(550, ("5.1.1 no",))
TOO_MANY = Reply(452, ("4.5.3 too many recipients",))
A, B, C = "a@x.test", "b@x.test", "c@x.test"


# -- The first try, and those after it -------------------------------------------------


def test_the_first_try_may_be_pipelined_behind_another_and_later_ones_may_not() -> None:
    submission = one()
    assert submission.begin().may_follow
    assert lost(submission, Phase.MAIL) is Decision.RETRY
    assert not submission.begin().may_follow


@pytest.mark.parametrize(
    ("code", "state", "first"),
    [
        (550, {"pipelined": True}, Decision.ALONE),
        (451, {"carried": True}, Decision.FRESH),
    ],
)
def test_a_refusal_that_speaks_of_something_else_is_tried_once_more(
    code: int, state: dict[str, Any], first: Decision
) -> None:
    submission = one()
    assert refused(submission, Phase.MAIL, code, **state) is first
    assert not submission.done
    assert submission.refused_pipelined is (first is Decision.ALONE)
    assert refused(submission, Phase.MAIL, code) is Decision.FINAL
    assert (submission.done, submission.outcome) == (True, NOT_SENT)
    assert submission.ended > 0
    assert submission.attempts == 2


def test_a_message_that_finds_no_fresh_connection_is_tried_three_times_more() -> None:
    submission = one()
    decisions = [refused(submission, Phase.MAIL, 451, carried=True) for _ in range(4)]
    assert decisions == [Decision.FRESH] * 3 + [Decision.FINAL]


# -- Repeats ---------------------------------------------------------------------------


def test_a_repeat_has_the_same_bytes_and_waits_for_its_time() -> None:
    submission = one()
    before = time.monotonic()
    assert lost(submission) is Decision.REPEAT
    assert submission.begin().frozen
    assert not submission.done
    pause = submission.not_before - before
    assert pause > 0.5 * policy.PAUSE


@pytest.mark.parametrize("repeated", [False, True])
def test_a_repeat_needs_the_answer_for_each_recipient_of_every_try(
    *, repeated: bool
) -> None:
    submission = one(A, B)
    if repeated:
        assert lost(submission) is Decision.REPEAT
    transaction = submission.begin()
    transaction.phase, transaction.failure = Phase.COMMIT, OSError("gone")
    transaction.replies = {A: OK}  # the other was lost together with the end
    assert submission.record(transaction) is Decision.UNKNOWN
    assert not submission.repeatable


def test_the_first_try_that_was_lost_keeps_the_refusals_of_its_recipients() -> None:
    submission = one(A, B, C)
    assert lost(submission, b=NO) is Decision.REPEAT
    first = submission.unconfirmed
    # The relay may answer for those as it answers for the others.
    assert submission.envelope.recipients == (A, C)
    assert submission.envelope.idempotency_key == "k"
    assert lost(submission) is Decision.REPEAT
    assert submission.unconfirmed is first
    assert first
    assert first.replies[B] == NO


def test_repeats_end_with_their_number() -> None:
    submission = one()
    for _ in range(policy.MAX_REPEATS):
        assert lost(submission) is Decision.REPEAT
    assert lost(submission) is Decision.UNKNOWN
    assert (submission.done, submission.outcome) == (True, UNKNOWN)


def test_no_repeat_is_planned_beyond_the_deadline() -> None:
    submission = one()
    late = policy.PAUSE / 2
    submission.deadline.started = time.monotonic() - submission.deadline.seconds + late
    assert lost(submission) is Decision.UNKNOWN


def test_only_a_message_to_one_may_be_unconfirmed_together_with_others() -> None:
    assert one(A).begin().repeatable
    assert not one(A, B).begin().repeatable
    assert not one(A, idempotency=False).begin().repeatable


@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.COMMIT])
def test_a_refused_repeat_does_not_make_it_not_sent(phase: Phase, code: int) -> None:
    submission = one()
    lost(submission)
    decision = refused(submission, phase, code)
    assert decision is (Decision.REPEAT if code == 451 else Decision.UNKNOWN)
    submission.fail(None)
    assert submission.outcome is UNKNOWN


def test_what_an_earlier_process_left_unconfirmed_is_repeated_byte_for_byte() -> None:
    submission = one(A, B)
    submission.resume()
    assert submission.repeatable
    assert submission.begin().frozen
    submission.fail(None)
    assert submission.outcome is UNKNOWN


# -- No connection ---------------------------------------------------------------------


@pytest.mark.parametrize("end", [Submission.fail_to_connect, Submission.fail])
def test_without_a_connection_a_message_that_was_not_begun_is_not_sent(
    end: Callable[[Submission, Exception], None],
) -> None:
    submission = one()
    error = ConnectFailed("gone")
    end(submission, error)
    assert submission.error is error
    assert (submission.done, submission.outcome) == (True, NOT_SENT)


@pytest.mark.parametrize("repeats", [0, policy.MAX_REPEATS])
def test_without_a_connection_an_unconfirmed_message_is_repeated_later_or_unknown(
    repeats: int,
) -> None:
    submission = one()
    submission.resume()
    submission.repeats = repeats
    submission.fail_to_connect(ConnectFailed("gone"))
    assert submission.done is (repeats > 0)
    assert (submission.not_before > 0) is (repeats == 0)
    assert submission.outcome is (UNKNOWN if repeats else NOT_SENT)
    assert submission.error is None


# -- Interrupts ------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [False, True], ids=["before", "while recorded"])
@pytest.mark.parametrize(
    ("phase", "outcome"),
    [
        (Phase.MAIL, NOT_SENT),
        (Phase.CONTENT, NOT_SENT),
        (Phase.COMMIT, UNKNOWN),
        (Phase.DONE, SENT),
    ],
)
def test_an_interrupt_leaves_what_is_certain(
    phase: Phase, outcome: Outcome, *, recorded: bool
) -> None:
    submission = one()
    transaction = submission.begin()
    transaction.phase = phase
    if recorded:
        submission.attempts, submission.last = 1, transaction
    submission.interrupt(transaction)
    assert (submission.done, submission.outcome) == (True, outcome)
    assert (submission.attempts, submission.last) == (1, transaction)


def test_an_interrupted_repeat_stays_unknown() -> None:
    submission = one()
    lost(submission)
    first = submission.unconfirmed
    submission.interrupt(submission.begin())
    assert submission.outcome is UNKNOWN
    second = submission.begin()
    second.phase = Phase.COMMIT
    submission.interrupt(second)
    assert submission.unconfirmed is first


def test_an_interrupt_before_the_next_try_reports_no_refusal_of_pipelining() -> None:
    submission = one()
    refused(submission, Phase.MAIL, 503, pipelined=True)
    assert submission.last
    submission.interrupt(submission.last)
    assert (submission.done, submission.outcome) == (True, NOT_SENT)
    assert isinstance(submission.error, ConnectionLost)


# -- Further transactions --------------------------------------------------------------


def further(submission: Submission) -> list[tuple[tuple[str, ...], str | None]]:
    return [
        (each.envelope.recipients, each.envelope.idempotency_key)
        for each in submission.message_submissions[1:]
    ]


def test_recipients_that_are_too_many_get_a_transaction_with_a_key_of_its_own() -> None:
    submission = one(A, B, C)
    sent(submission, b=TOO_MANY, c=TOO_MANY)
    assert further(submission) == [((B, C), derived_key("k", B, C))]
    second = submission.message_submissions[1]
    assert second.deadline is submission.deadline
    sent(second, c=TOO_MANY)
    assert further(submission)[1] == ((C,), derived_key(derived_key("k", B, C), C))


@pytest.mark.parametrize(
    ("reply", "pipelined", "gets_one"),
    [
        (Reply(503), True, True),
        (Reply(503), False, False),
        (Reply(450), True, False),
        (NO, True, False),
    ],
    ids=str,
)
def test_recipients_refused_for_being_pipelined_get_a_further_transaction(
    reply: Reply, *, pipelined: bool, gets_one: bool
) -> None:
    submission = one(A, B)
    sent(submission, pipelined=pipelined, b=reply)
    assert further(submission) == [((B,), derived_key("k", B))] * gets_one


def test_a_further_transaction_follows_an_unknown_one() -> None:
    submission = one(A, B, idempotency=False)
    lost(submission, b=TOO_MANY)
    assert submission.outcome is UNKNOWN
    assert further(submission) == [((B,), derived_key("k", B))]


def test_a_further_transaction_waits_for_the_end_of_a_repeat() -> None:
    submission = one(A, B)
    lost(submission, b=TOO_MANY)
    assert further(submission) == []
    sent(submission)
    assert further(submission) == [((B,), derived_key("k", B))]


def test_no_further_transaction_follows_refused_content() -> None:
    submission = one(A, B)
    refused(submission, Phase.COMMIT, b=TOO_MANY)
    assert further(submission) == []


# -- A message -------------------------------------------------------------------------


def test_more_than_fifty_recipients_are_divided_and_share_a_deadline() -> None:
    config = backend_config({"api_token": "t", "host": "127.0.0.1"}).relay
    everyone = envelope(*(f"{n}@x.test" for n in range(120)), idempotency_key="k")
    parts = submissions([everyone], config)
    assert [len(each.envelope.recipients) for each in parts] == [50, 50, 20]
    assert parts[0].envelope.idempotency_key == "k"
    assert len({each.envelope.idempotency_key for each in parts}) == 3
    assert len({id(each.deadline) for each in parts}) == 1
    assert all(each.message_submissions is parts for each in parts)


def test_a_deadline_runs_from_its_first_use() -> None:
    deadline = Deadline(30.0)
    assert deadline.started == 0.0
    assert deadline.seconds_left() == 30.0
    started = deadline.started
    assert 0.0 < deadline.seconds_left() < 30.0
    assert deadline.started == started > 0.0
