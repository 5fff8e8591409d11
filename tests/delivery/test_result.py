"""What the submissions of one message add up to, without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from django_lettermint.delivery import (
    Submission,
    build_error,
    build_result,
    recipients_of,
)
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintInvalidMessage,
    MessageRefused,
    PoolClosed,
    PoolTimeout,
    RecipientsRefused,
    SenderRefused,
    TLSFailed,
)
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import MAX_TEXT, Reply, ServerClosing
from tests.delivery.ends import failed, lost, one, refused, sent, several

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def unknown(part: Submission) -> None:
    lost(part)
    part.fail(None)


def error_of(part: Submission, **keywords: bool) -> Any:
    return build_error([part], **keywords)


# -- Several submissions ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ((sent, refused), SENT),
        ((refused, sent), SENT),
        ((sent, unknown, refused), UNKNOWN),
        ((refused, refused), NOT_SENT),
        ((refused, unknown), UNKNOWN),
        ((sent, sent), SENT),
    ],
)
def test_unknown_beats_sent_and_sent_beats_not_sent(
    ends: tuple[Callable[[Submission], object], ...], outcome: Outcome
) -> None:
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


def test_the_time_runs_from_the_first_try_to_the_last_end() -> None:
    parts = several("a", "b")
    for part in parts:
        sent(part)
    assert build_result(parts).elapsed == 0.0
    for part, started, ended in zip(parts, (2.0, 1.0), (5.0, 4.0), strict=True):
        part.deadline.started, part.ended = started, ended
    assert build_result(parts).elapsed == 4.0


# -- Unknown ---------------------------------------------------------------------------


def test_a_confirmed_repeat_has_its_reply_and_a_refused_one_decides_nothing() -> None:
    first, second = several("a", "b")
    for part in (first, second):
        lost(part)
    sent(first)
    refused(second, code=554)
    result = build_result([first])
    assert (result.outcome, result.code, result.phase) == (SENT, 250, Phase.DONE)
    result = build_result([second])
    assert (result.outcome, result.code, result.phase) == (UNKNOWN, None, Phase.COMMIT)
    assert result.recipients["b@x.test"].status == "unknown"
    assert "(gone; a repeat was answered by 554 no)" in str(error_of(second))


def test_an_unknown_delivery_names_the_envelopes_that_are() -> None:
    parts = several("a", "b", "c")
    unknown(parts[0])
    sent(parts[1])
    unknown(parts[2])
    error = build_error(parts)
    assert isinstance(error, DeliveryUnknown)
    names = [each.recipients for each in error.envelopes]
    assert names == [("a@x.test",), ("c@x.test",)]
    assert error.repeatable
    assert "came back (gone): " in str(error)
    assert "`EmailBackend.repeat()` of its envelopes" in str(error)


def test_an_unknown_delivery_without_idempotency_says_to_look_first() -> None:
    (part,) = several("a", idempotency=False)
    lost(part)
    assert not error_of(part).repeatable
    assert "look it up in the dashboard" in str(error_of(part))


# -- Refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [450, 550])
@pytest.mark.parametrize(
    ("phase", "kind", "what"),
    [
        (Phase.MAIL, SenderRefused, "the message at MAIL"),
        (Phase.RCPT, RecipientsRefused, "the recipient at RCPT"),
        (Phase.DATA, MessageRefused, "the message at DATA"),
        (Phase.CONTENT, MessageRefused, "the message at DATA, before its end"),
        (Phase.COMMIT, MessageRefused, "the message at its end"),
    ],
)
def test_a_refusal_becomes_the_error_of_its_step(
    phase: Phase, kind: type[Any], what: str, code: int
) -> None:
    (part,) = several("a")
    refused(part, phase, code)
    error = error_of(part)
    assert type(error) is kind
    assert (error.transient, error.retry_safe) == (code < 500, True)
    assert error.smtp_code == code
    assert str(error).startswith(f"the relay refused {what}: {code} no; ")
    assert build_result([part]).phase is phase


def test_the_advice_for_a_refused_message_depends_on_whose_key_it_has() -> None:
    (part,) = several("a")
    refused(part)
    assert "key is your own" not in str(error_of(part))
    assert "key is your own" in str(error_of(part, has_caller_key=True))


def test_refusals_of_the_sender_and_of_all_recipients_name_them() -> None:
    (part,) = several("a")
    refused(part, Phase.MAIL)
    assert error_of(part).sender == "ann@example.org"
    part = one("a@x.test", "b@x.test")
    refused(part, Phase.RCPT)
    assert "refused all 2 recipients at RCPT" in str(error_of(part))
    assert error_of(part).recipients == {
        "a@x.test": (550, b""),
        "b@x.test": (550, b""),
    }


def test_a_refusal_before_the_transaction_decides_as_well() -> None:
    (part,) = several("a")
    part.fail(AuthenticationFailed("no").with_reply(535, "5.7.8 wrong"))
    result = build_result([part])
    assert (result.code, result.text, result.attempts) == (535, "5.7.8 wrong", 0)
    assert result.recipients["a@x.test"].code == 535


# -- Lost, or never begun --------------------------------------------------------------


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
def test_an_error_of_all_is_copied_for_each_and_has_a_step(
    error: Exception, phase: Phase
) -> None:
    (part,) = several("a")
    part.fail(error)
    copied = error_of(part)
    assert type(copied) is type(error)
    assert copied is not error
    assert str(copied) == "x"
    result = build_result([part])
    assert (result.phase, result.code, result.text) == (phase, None, "")
    assert result.recipients["a@x.test"].status == "failed"


def test_a_connection_that_failed_at_a_later_step_names_it() -> None:
    (part,) = several("a")
    error = ConnectFailed("x")
    error.phase = Phase.AUTH
    part.fail(error)
    assert build_result([part]).phase is Phase.AUTH


@pytest.mark.parametrize(
    ("failure", "timed_out"),
    [(ConnectionResetError("gone"), False), (TimeoutError("gone"), True)],
)
def test_a_loss_says_where_and_how_often(failure: OSError, *, timed_out: bool) -> None:
    (part,) = several("a")
    for _ in range(3):
        failed(part, Phase.RCPT, failure)
    part.fail(None)
    assert isinstance(error_of(part), ConnectionLost)
    assert error_of(part).timed_out is timed_out
    assert str(error_of(part)) == (
        "the connection failed at RCPT (gone; attempts: 3): the message was not sent; "
        "send it again"
    )
    assert build_result([part]).phase is Phase.RCPT


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.DATA])
def test_code_and_text_of_a_server_that_closes_are_kept(phase: Phase) -> None:
    (part,) = several("a")
    failed(part, phase, ServerClosing(Reply(421, ("4.7.0 try again later",))))
    result, error = build_result([part]), error_of(part)
    assert (result.code, result.text) == (421, "4.7.0 try again later")
    assert result.recipients["a@x.test"].code == 421
    assert isinstance(error, ConnectionLost)
    assert (error.smtp_code, error.smtp_error) == (421, b"4.7.0 try again later")
    assert error.transient


def test_a_message_that_was_never_begun_was_interrupted() -> None:
    (part,) = several("a")
    part.fail(None)
    assert isinstance(error_of(part), ConnectionLost)
    assert "interrupted before" in str(error_of(part))
    assert build_result([part]).phase is Phase.POOL
    part.deadline.seconds_left()
    assert build_result([part]).phase is Phase.CONNECT


def test_a_message_that_does_not_fit_keeps_its_own_error() -> None:
    (part,) = several("a")
    failure = LettermintInvalidMessage("too big")
    failed(part, Phase.MAIL, failure)
    assert part.done
    assert error_of(part) is failure


def test_a_reason_is_limited_in_length() -> None:
    (part,) = several("a")
    failed(part, Phase.MAIL, OSError("x" * 9999))
    part.fail(None)
    assert len(str(error_of(part))) < MAX_TEXT + 200


# -- Recipients ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (250, "queued"),
        (251, "queued"),
        (450, "failed"),
        (499, "failed"),
        (500, "rejected"),
        (550, "rejected"),
        (501, "invalid"),
        (553, "invalid"),
    ],
)
def test_the_reply_to_rcpt_becomes_a_status(code: int, status: str) -> None:
    part = one("a@x.test", "b@x.test")
    sent(part, a=Reply(code))
    found = build_result([part]).recipients["a@x.test"]
    assert (found.status, found.code) == (status, code)


def test_a_recipient_without_an_answer_is_queued_with_the_others() -> None:
    (part,) = several("a")
    transaction = part.begin()
    transaction.phase, transaction.reply = Phase.DONE, Reply(250)
    part.record(transaction)
    assert build_result([part]).recipients["a@x.test"].status == "queued"


def test_a_reply_about_the_sender_marks_no_recipient_as_invalid() -> None:
    (part,) = several("a")
    refused(part, Phase.MAIL, 553)
    assert build_result([part]).recipients["a@x.test"].status == "rejected"


def test_recipients_of_a_repeat_are_all_of_the_first_try() -> None:
    part = one("a@x.test", "b@x.test")
    lost(part, a=Reply(550))
    assert part.envelope.recipients == ("b@x.test",)
    assert recipients_of(part) == ("a@x.test", "b@x.test")
    sent(part)
    found = build_result([part]).recipients
    assert [each.status for each in found.values()] == ["rejected", "queued"]


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
