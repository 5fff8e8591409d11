"""The table of docs/delivery.md, row by row: what happened decides what comes next."""

from __future__ import annotations

from typing import Any

import pytest

from django_lettermint.delivery import policy
from django_lettermint.delivery.policy import Decision, Failure, decide
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
    MessageRefused,
    TLSFailed,
)
from django_lettermint.results import Phase
from django_lettermint.smtp import Reply

CONNECTING = [Phase.POOL, Phase.CONNECT, Phase.TLS, Phase.AUTH]
BEFORE_CONTENT = [Phase.MAIL, Phase.RCPT, Phase.DATA]
SENDING = [*BEFORE_CONTENT, Phase.CONTENT, Phase.COMMIT]


def reply(code: int, text: str = "") -> Reply:
    return Reply(code, (text,))


def after(phase: Phase, answer: Reply | None = None, **state: Any) -> Decision:
    return decide(Failure(phase=phase, reply=answer, **state))


# -- before the login is done --------------------------------------------------------------


@pytest.mark.parametrize("phase", CONNECTING)
@pytest.mark.parametrize("answer", [None, reply(421), reply(454)], ids=str)
def test_a_connection_that_could_not_be_made_is_tried_again_within_the_limits(
    phase: Phase, answer: Reply | None
) -> None:
    assert after(phase, answer) is Decision.RETRY
    assert after(phase, answer, may_retry=False) is Decision.GIVE_UP


@pytest.mark.parametrize("phase", CONNECTING)
@pytest.mark.parametrize("code", [500, 535, 554])
def test_a_refusal_for_good_before_the_login_ends_the_attempt(
    phase: Phase, code: int
) -> None:
    assert after(phase, reply(code)) is Decision.GIVE_UP


@pytest.mark.parametrize("phase", [*CONNECTING, Phase.MESSAGE])
def test_tls_that_is_not_verified_and_a_message_that_does_not_fit_end_at_once(
    phase: Phase,
) -> None:
    assert after(phase, permanent=True) is Decision.GIVE_UP


# -- pipelined behind the end of another message -------------------------------------------


@pytest.mark.parametrize("phase", BEFORE_CONTENT)
@pytest.mark.parametrize("code", [450, 451, 503, 530, 550])
def test_a_message_refused_behind_another_is_sent_once_more_by_itself(
    phase: Phase, code: int
) -> None:
    state: Any = {"carried": True, "used": True}
    assert after(phase, reply(code), pipelined=True, **state) is Decision.ALONE


@pytest.mark.parametrize("phase", [Phase.CONTENT, Phase.COMMIT])
def test_a_refusal_of_the_content_does_not_speak_of_the_pipelining(
    phase: Phase,
) -> None:
    assert after(phase, reply(554), pipelined=True) is Decision.FINAL
    assert after(phase, reply(503), pipelined=True) is Decision.ALONE


# -- a limit of the session -------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.DATA])
@pytest.mark.parametrize("code", [400, 450, 451, 452, 499, 530])
def test_a_refusal_for_this_session_is_tried_once_on_a_fresh_connection(
    phase: Phase, code: int
) -> None:
    assert after(phase, reply(code), carried=True) is Decision.FRESH
    assert after(phase, reply(code), carried=True, tried_fresh=True) is Decision.FINAL
    # A connection that has carried nothing has reached no limit.
    assert after(phase, reply(code), used=True) is Decision.FINAL


@pytest.mark.parametrize(
    "text",
    [
        "4.5.3 Too many messages sent",
        "4.3.2 too many mails in this session",
        "Maximum number of transactions exceeded",
        "4.5.3 e-mails per hour",
        "4.5.3 email quota",
    ],
)
def test_a_452_at_rcpt_about_messages_is_a_limit_of_the_session(text: str) -> None:
    assert after(Phase.RCPT, reply(452, text), carried=True) is Decision.FRESH
    assert policy.limits_messages(reply(452, text))
    assert not policy.limits_recipients(reply(452, text))


@pytest.mark.parametrize(
    "text",
    [
        "4.5.3 Too many recipients",
        "4.5.3 too many RCPTs for this message",
        "4.5.3 too many addresses in one mail",
        "4.5.3",
    ],
)
def test_a_452_at_rcpt_about_recipients_is_none(text: str) -> None:
    assert after(Phase.RCPT, reply(452, text), carried=True) is Decision.FINAL
    assert policy.limits_recipients(reply(452, text))


def test_a_lost_login_is_a_limit_of_the_session_at_rcpt_as_well() -> None:
    assert after(Phase.RCPT, reply(530), carried=True) is Decision.FRESH


@pytest.mark.parametrize(
    ("phase", "code"),
    [
        (Phase.MAIL, 550),
        (Phase.DATA, 554),
        (Phase.RCPT, 450),
        (Phase.RCPT, 451),
        (Phase.CONTENT, 452),
        (Phase.COMMIT, 451),
        (Phase.COMMIT, 530),
    ],
)
def test_other_refusals_do_not_speak_of_the_session(phase: Phase, code: int) -> None:
    text = "too many messages"
    assert after(phase, reply(code, text), carried=True) is Decision.FINAL


# -- a lost connection ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [*BEFORE_CONTENT, Phase.CONTENT])
def test_a_used_connection_that_is_lost_is_replaced(phase: Phase) -> None:
    assert after(phase, used=True) is Decision.REPLACE
    assert after(phase, used=True, may_retry=False) is Decision.REPLACE


@pytest.mark.parametrize("phase", [*BEFORE_CONTENT, Phase.CONTENT])
def test_a_fresh_connection_that_is_lost_is_tried_again_within_the_limits(
    phase: Phase,
) -> None:
    assert after(phase) is Decision.RETRY
    assert after(phase, may_retry=False) is Decision.GIVE_UP


# -- a further connection of a list -----------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.DATA])
@pytest.mark.parametrize("answer", [None, reply(400), reply(450), reply(499)], ids=str)
def test_what_a_lists_further_connection_meets_first_has_another_one_carry_the_message(
    phase: Phase, answer: Reply | None
) -> None:
    assert after(phase, answer, others_open=True) is Decision.WAIT
    assert after(phase, answer, others_open=True, may_retry=False) is Decision.WAIT


@pytest.mark.parametrize(
    ("phase", "code"),
    [(Phase.MAIL, 550), (Phase.RCPT, 450), (Phase.DATA, 530), (Phase.COMMIT, 451)],
)
def test_other_refusals_do_not_speak_of_a_limit_of_connections(
    phase: Phase, code: int
) -> None:
    assert after(phase, reply(code), others_open=True) is Decision.FINAL


# -- the message itself ------------------------------------------------------------------------


@pytest.mark.parametrize("phase", SENDING)
@pytest.mark.parametrize("code", [450, 451, 503, 550, 552, 554])
def test_a_refusal_on_a_fresh_connection_is_final(phase: Phase, code: int) -> None:
    assert after(phase, reply(code)) is Decision.FINAL


# -- unconfirmed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [*CONNECTING, *SENDING])
@pytest.mark.parametrize("answer", [None, reply(421), reply(499)], ids=str)
def test_an_unconfirmed_message_is_repeated_if_that_is_safe(
    phase: Phase, answer: Reply | None
) -> None:
    state: Any = {"unconfirmed": True, "used": True, "carried": True, "pipelined": True}
    assert after(phase, answer, repeatable=True, **state) is Decision.REPEAT
    assert after(phase, answer, **state) is Decision.UNKNOWN


@pytest.mark.parametrize("phase", [*CONNECTING, *SENDING])
@pytest.mark.parametrize(
    "state",
    [{"reply": reply(500)}, {"reply": reply(554)}, {"permanent": True}],
    ids=str,
)
def test_a_repeat_refused_for_good_leaves_the_message_unknown(
    phase: Phase, state: dict[str, Any]
) -> None:
    failure = Failure(phase=phase, unconfirmed=True, repeatable=True, **state)
    assert decide(failure) is Decision.UNKNOWN


# -- further transactions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "asks"),
    [
        (452, "4.5.3 too many recipients", True),
        (452, "too many recipients", True),
        (552, "5.5.3 too many recipients", True),
        (552, "too many recipients", True),
        (452, "4.3.1 disk full", False),
        (450, "4.5.3 too many recipients", False),
        (552, "5.2.2 full", False),
        (550, "5.5.3 too many recipients", False),
    ],
)
def test_too_many_recipients_ask_for_a_further_transaction(
    code: int, text: str, *, asks: bool
) -> None:
    assert policy.limits_recipients(reply(code, text)) is asks


# -- how often, and how long ---------------------------------------------------------------------


def test_retries_are_limited_by_number_and_time_but_the_first_ones_by_number_only() -> (
    None
):
    for failures, retries, waited, expected in [
        (1, 0, 0.0, False),
        (1, 8, 99.0, True),
        (2, 8, 99.0, True),
        (3, 8, 99.0, False),
        (3, 8, 1.9, True),
        (3, 8, 2.0, False),
        (8, 8, 1.9, True),
        (9, 8, 1.9, False),
        (2, 1, 0.0, False),
    ]:
        assert policy.may_retry(failures, retries, waited, 2.0) is expected


@pytest.mark.parametrize(
    ("tries", "seconds"),
    [(1, 0.1), (2, 0.2), (3, 0.4), (7, 6.4), (8, 10), (99, 10), (9999, 10)],
)
def test_pauses_double_up_to_a_limit_and_differ(tries: int, seconds: float) -> None:
    pauses = [policy.backoff(tries) for _ in range(200)]
    assert 0.75 * seconds <= min(pauses) < max(pauses) <= 1.25 * seconds


def test_a_pause_is_no_longer_than_the_time_that_is_left() -> None:
    assert policy.backoff(20, most=0.25) == 0.25
    assert policy.backoff(1, most=-1.0) == 0.0


# -- a queue -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (None, True),
        (ConnectFailed("x"), True),
        (TLSFailed("x"), True),
        (AuthenticationFailed("x"), False),
        (MessageRefused("x").with_reply(451, ""), True),
        (MessageRefused("x").with_reply(554, ""), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_a_queue_keeps_what_may_go_out_later(
    error: LettermintError | None, *, helps: bool
) -> None:
    def later(**state: bool) -> bool:
        state = {"unconfirmed": False, "repeatable": False, "permanent": False} | state
        return policy.later_may_help(error, **state)

    assert later() is helps
    assert later(unconfirmed=True, repeatable=True)
    assert not later(unconfirmed=True)
    assert not later(unconfirmed=True, repeatable=True, permanent=True)
