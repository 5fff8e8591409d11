"""What the submissions of one message add up to, without a network."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from django_lettermint.delivery import (
    Submission,
    build_error,
    build_result,
    phase_of,
    recipients_of,
)
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
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import Reply, ServerClosing
from django_lettermint.smtp.replies import MAX_TEXT
from tests.delivery.ends import lost, one, refused, sent, several

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def unknown(part: Submission) -> None:
    lost(part)
    part.fail(None)


def test_unknown_beats_sent_and_sent_beats_not_sent() -> None:
    cases: list[tuple[tuple[Callable[[Submission], object], ...], Outcome]] = [
        ((sent, refused), SENT),
        ((refused, sent), SENT),
        ((sent, unknown, refused), UNKNOWN),
        ((refused, refused), NOT_SENT),
        ((refused, unknown), UNKNOWN),
        ((sent, sent), SENT),
    ]
    for ends, outcome in cases:
        parts = several(*"abc"[: len(ends)])
        for end, part in zip(ends, parts, strict=True):
            end(part)
        assert build_result(parts).outcome is outcome
        assert (build_error(parts) is None) is (outcome is SENT)


def test_the_result_names_the_first_and_counts_all() -> None:
    parts = several("a", "b", "c")
    for _ in range(2):
        lost(parts[0], Phase.RCPT)
    for part in parts:
        sent(part)
    result = build_result(parts)
    assert (result.message_id, result.idempotency_key) == ("id", "a")
    assert result.attempts == 5
    assert (result.code, result.text, result.phase) == (250, "queued", Phase.DONE)
    assert [*result.recipients] == ["a@x.test", "b@x.test", "c@x.test"]


def test_the_result_of_a_repeat_that_was_confirmed_has_its_reply() -> None:
    (part,) = several("a")
    lost(part)
    sent(part)
    result = build_result([part])
    assert (result.outcome, result.code, result.phase) == (SENT, 250, Phase.DONE)


def test_the_time_runs_from_the_first_look_to_the_last_end() -> None:
    parts = several("a", "b")
    for part in parts:
        sent(part)
    assert build_result(parts).elapsed == 0.0
    parts = several("a", "b")
    for part in parts:
        part.deadline.seconds_left()
        sent(part)
    assert 0.0 < build_result(parts).elapsed < 5.0


def test_an_answer_to_a_repeat_does_not_decide_but_is_told() -> None:
    (part,) = several("a")
    lost(part)
    refused(part, code=554)
    result, error = build_result([part]), build_error([part])
    assert (result.outcome, result.code, result.text) == (UNKNOWN, None, "")
    assert isinstance(error, DeliveryUnknown)
    assert "(gone; a repeat was answered by 554 no)" in str(error)


def test_a_refusal_before_the_transaction_decides_as_well() -> None:
    (part,) = several("a")
    part.fail(AuthenticationFailed("no").with_reply(535, "5.7.8 wrong"))
    result = build_result([part])
    assert (result.code, result.text, result.attempts) == (535, "5.7.8 wrong", 0)


def test_no_connection_has_no_reply() -> None:
    (part,) = several("a")
    part.fail(ConnectFailed("timed out"))
    result = build_result([part])
    assert (result.code, result.text) == (None, "")


def test_an_unknown_delivery_names_the_envelopes_that_are() -> None:
    parts = several("a", "b", "c")
    unknown(parts[0])
    sent(parts[1])
    unknown(parts[2])
    error = build_error(parts)
    assert isinstance(error, DeliveryUnknown)
    assert [each.recipients for each in error.envelopes] == [("a@x.test",), ("c@x.test",)]  # fmt: skip
    assert error.repeatable
    assert "`EmailBackend.repeat()` of its envelopes" in str(error)


def test_an_unknown_delivery_without_idempotency_says_to_look_first() -> None:
    (part,) = several("a", idempotency=False)
    lost(part)
    assert part.done
    error = build_error([part])
    assert isinstance(error, DeliveryUnknown)
    assert not error.repeatable
    assert "look it up in the dashboard" in str(error)


@pytest.mark.parametrize(
    ("phase", "kind"),
    [
        (Phase.MAIL, SenderRefused),
        (Phase.RCPT, RecipientsRefused),
        (Phase.DATA, MessageRefused),
        (Phase.CONTENT, MessageRefused),
        (Phase.COMMIT, MessageRefused),
    ],
)
@pytest.mark.parametrize("code", [450, 550])
def test_a_refusal_becomes_the_error_of_its_step(
    phase: Phase, kind: type[LettermintError], code: int
) -> None:
    (part,) = several("a")
    refused(part, phase, code)
    error = build_error([part])
    assert type(error) is kind
    assert error.transient is (code < 500)
    assert error.retry_safe
    assert error.smtp_code == code
    assert build_result([part]).phase is phase


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (ConnectFailed("x"), Phase.CONNECT),
        (TLSFailed("x"), Phase.TLS),
        (AuthenticationFailed("x"), Phase.AUTH),
        (PoolTimeout("x"), Phase.POOL),
        (PoolClosed("x"), Phase.POOL),
        (ConnectionLost("x"), Phase.CONNECT),
        (LettermintInvalidMessage("x"), Phase.MESSAGE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_all_is_copied_for_each_and_tells_the_step(
    error: Exception, phase: Phase
) -> None:
    (part,) = several("a")
    part.fail(error)
    copied = build_error([part])
    assert type(copied) is type(error)
    assert copied is not error
    assert str(copied) == "x"
    assert build_result([part]).phase is phase
    assert phase_of(error) is phase


def test_a_connection_that_failed_at_a_later_step_names_it() -> None:
    error = ConnectFailed("x")
    error.phase = Phase.AUTH
    assert phase_of(error) is Phase.AUTH


def test_a_loss_tells_where_and_how_often() -> None:
    (part,) = several("a")
    for _ in range(3):
        lost(part, Phase.RCPT)
    part.fail(None)
    error = build_error([part])
    assert isinstance(error, ConnectionLost)
    assert str(error) == (
        "the connection failed at RCPT (gone; attempts: 3): the message was not sent; "
        "send it again"
    )
    assert build_result([part]).phase is Phase.RCPT


def test_a_message_that_was_never_begun_was_interrupted() -> None:
    (part,) = several("a")
    part.fail(None)
    error = build_error([part])
    assert isinstance(error, ConnectionLost)
    assert "interrupted before" in str(error)
    assert build_result([part]).phase is Phase.POOL
    part.deadline.seconds_left()
    assert build_result([part]).phase is Phase.CONNECT


def test_a_message_that_does_not_fit_keeps_its_own_error() -> None:
    (part,) = several("a")
    transaction = part.begin()
    transaction.failure = LettermintInvalidMessage("too big")
    part.record(transaction)
    assert part.done
    assert build_error([part]) is transaction.failure


def test_a_reason_is_bounded() -> None:
    (part,) = several("a")
    transaction = part.begin()
    transaction.failure = OSError("x" * 9999)
    part.record(transaction)
    part.fail(None)
    assert len(str(build_error([part]))) < MAX_TEXT + 200


@pytest.mark.parametrize(
    ("reply", "status"),
    [(Reply(250), "queued"), (Reply(251), "queued"), (Reply(450), "failed"),
     (Reply(550), "rejected"), (Reply(501), "invalid"), (Reply(553), "invalid")],
    ids=str,
)  # fmt: skip
def test_the_reply_to_rcpt_becomes_a_status(reply: Reply, status: str) -> None:
    part = one("a@x.test", "b@x.test")
    transaction = part.begin()
    transaction.replies = {"a@x.test": reply, "b@x.test": Reply(250)}
    transaction.phase, transaction.reply = Phase.DONE, Reply(250)
    part.record(transaction)
    found = build_result([part]).recipients["a@x.test"]
    assert (found.status, found.code) == (status, reply.code)


def test_a_recipient_without_an_answer_of_its_own_is_queued_with_the_others() -> None:
    (part,) = several("a")
    transaction = part.begin()
    transaction.phase, transaction.reply = Phase.DONE, Reply(250)
    part.record(transaction)
    assert build_result([part]).recipients["a@x.test"].status == "queued"


def test_recipients_of_a_repeat_are_all_of_the_first_try() -> None:
    part = one("a@x.test", "b@x.test")
    first = part.begin()
    first.replies = {"a@x.test": Reply(550), "b@x.test": Reply(250)}
    first.phase, first.failure = Phase.COMMIT, OSError("gone")
    part.record(first)
    assert part.envelope.recipients == ("b@x.test",)
    assert recipients_of(part) == ("a@x.test", "b@x.test")


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.DATA])
def test_the_words_of_a_server_that_closes_are_kept(phase: Phase) -> None:
    (part,) = several("a")
    transaction = part.begin()
    transaction.phase = phase
    transaction.failure = ServerClosing(Reply(421, ("4.7.0 try again later",)))
    part.record(transaction)
    result, error = build_result([part]), build_error([part])
    assert (result.code, result.text) == (421, "4.7.0 try again later")
    assert result.recipients["a@x.test"].code == 421
    assert isinstance(error, ConnectionLost)
    assert (error.smtp_code, error.smtp_error) == (421, b"4.7.0 try again later")
    assert error.transient


def test_refusals_of_the_sender_and_of_all_recipients_name_them() -> None:
    (part,) = several("a")
    refused(part, Phase.MAIL)
    error = build_error([part])
    assert isinstance(error, SenderRefused)
    assert error.sender == "ann@example.org"
    part = one("a@x.test", "b@x.test")
    refused(part, Phase.RCPT)
    error = build_error([part])
    assert isinstance(error, RecipientsRefused)
    assert "refused all 2 recipients at RCPT" in str(error)
    assert error.recipients == {"a@x.test": (550, b""), "b@x.test": (550, b"")}


def test_a_reply_about_the_sender_marks_no_recipient_as_invalid() -> None:
    (part,) = several("a")
    refused(part, Phase.MAIL, 553)
    assert build_result([part]).recipients["a@x.test"].status == "rejected"


def test_a_recipient_refused_on_a_repeat_may_have_got_the_first_try() -> None:
    part = one("a@x.test", "b@x.test")
    lost(part)
    sent(part, b=Reply(550, ("5.1.1 no",)))
    found = build_result([part]).recipients
    assert found["a@x.test"].status == "queued"
    assert (found["b@x.test"].status, found["b@x.test"].text) == (
        "unknown",
        "550 5.1.1 no",
    )
