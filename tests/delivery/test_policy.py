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
CONTENT = [Phase.CONTENT, Phase.COMMIT]
SENDING = [*BEFORE_CONTENT, *CONTENT]
ALL = [*CONNECTING, *SENDING]

FINAL, REPEAT, WAIT = Decision.FINAL, Decision.REPEAT, Decision.WAIT


def reply(code: int, text: str = "") -> Reply:
    return Reply(code, (text,))


def row(
    what: str, phases: list[Phase], answers: list[Any], decision: Decision, **state: Any
) -> Any:
    """Return a row of the table; an answer is a code, or None for a lost connection."""
    return pytest.param(phases, answers, state, decision, id=what)


CARRIED: Any = {"carried": True, "used": True}
PIPELINED: Any = {"pipelined": True, **CARRIED}
UNCONFIRMED: Any = {"unconfirmed": True, **PIPELINED}
SAFE: Any = {"unconfirmed": True, "repeatable": True}
MAIL_DATA = [Phase.MAIL, Phase.DATA]
FOR_NOW = [400, 450, 451, 452, 499]
SESSION = [*FOR_NOW, 530]
NOT_LAST = [*BEFORE_CONTENT, Phase.CONTENT]
MESSAGES = reply(452, "4.5.3 Too many messages sent")
OTHERS = [reply(451, MESSAGES.text), reply(452, "4.5.3 Too many recipients")]
TABLE = [
    # Before the login is done.
    row("no connection", CONNECTING, [None, 421, 454, 499], Decision.RETRY),
    row("too often", CONNECTING, [None, 421], Decision.GIVE_UP, may_retry=False),
    row("refused for good", CONNECTING, [500, 535, 554], Decision.GIVE_UP),
    row("TLS not verified", CONNECTING, [None], Decision.GIVE_UP, permanent=True),
    row("too large", [Phase.MESSAGE], [None], Decision.GIVE_UP, permanent=True),
    # Pipelined behind the end of another message.
    row("behind", BEFORE_CONTENT, [450, 503, 530, 550], Decision.ALONE, **PIPELINED),
    row("its content", CONTENT, [451, 554], FINAL, **PIPELINED),
    row("pipelining itself", SENDING, [503], Decision.ALONE, **PIPELINED),
    # A limit of the session.
    row("session", MAIL_DATA, SESSION, Decision.FRESH, **CARRIED),
    row("tried on a fresh one", MAIL_DATA, SESSION, FINAL, tried_fresh=True, **CARRIED),
    row("carried nothing", MAIL_DATA, SESSION, FINAL, used=True),
    row("the login is over", [Phase.RCPT], [530, MESSAGES], Decision.FRESH, **CARRIED),
    row("a recipient", [Phase.RCPT], [*FOR_NOW, *OTHERS], FINAL, **CARRIED),
    row("the content", CONTENT, [451, 452, 530], FINAL, **CARRIED),
    row("for good", MAIL_DATA, [500, 550, 554], FINAL, **CARRIED),
    # A lost connection.
    row("used", NOT_LAST, [None], Decision.REPLACE, used=True),
    row("used, often", NOT_LAST, [None], Decision.REPLACE, used=True, may_retry=False),
    row("new", NOT_LAST, [None], Decision.RETRY),
    row("new, too often", NOT_LAST, [None], Decision.GIVE_UP, may_retry=False),
    # A further connection.
    row("further", NOT_LAST, [None], Decision.RETRY, others_open=True),
    row("further, often", SENDING, [None], WAIT, others_open=True, may_retry=False),
    row("further, for now", MAIL_DATA, FOR_NOW, WAIT, others_open=True),
    row("further, for good", MAIL_DATA, [500, 530, 550], FINAL, others_open=True),
    row("further, later", [Phase.RCPT, *CONTENT], [450], FINAL, others_open=True),
    # The message itself.
    row("this message", SENDING, [450, 451, 503, 550, 552, 554], FINAL),
    # Unconfirmed.
    row("a safe repeat", ALL, [None, 421, 499], REPEAT, **SAFE, **PIPELINED),
    row("no safe repeat", ALL, [None, 421, 499], Decision.UNKNOWN, **UNCONFIRMED),
    row("a refused repeat", ALL, [500, 554], Decision.UNKNOWN, **SAFE),
    row("login over", [*MAIL_DATA, Phase.RCPT], [530], REPEAT, **SAFE, **CARRIED),
    row("an impossible one", ALL, [None], Decision.UNKNOWN, **SAFE, permanent=True),
]


@pytest.mark.parametrize(("phases", "answers", "state", "decision"), TABLE)
def test_what_happened_decides_what_comes_next(
    phases: list[Phase],
    answers: list[Any],
    state: dict[str, Any],
    decision: Decision,
) -> None:
    for phase in phases:
        for answer in answers:
            refusal = reply(answer) if isinstance(answer, int) else answer
            failure = Failure(phase=phase, reply=refusal, **state)
            assert decide(failure) is decision, failure


# -- What a reply is about -------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "messages", "recipients"),
    [
        (452, "4.5.3 Too many messages sent", True, False),
        (452, "4.3.2 too many mails in this session", True, False),
        (452, "Maximum number of transactions exceeded", True, False),
        (452, "4.5.3 e-mails per hour", True, False),
        (451, "4.5.3 Too many messages sent", False, False),
        (452, "4.5.3 Too many recipients", False, True),
        (452, "too many recipients", False, True),
        (452, "4.5.3 too many RCPTs for this message", False, True),
        (452, "4.5.3 too many addresses in one mail", False, True),
        (452, "4.5.3", False, True),
        (552, "5.5.3 too many recipients", False, True),
        (452, "4.3.1 disk full", False, False),
        (450, "4.5.3 too many recipients", False, False),
        (552, "5.2.2 full", False, False),
        (550, "5.5.3 too many recipients", False, False),
    ],
)
def test_a_reply_limits_messages_or_recipients(
    code: int, text: str, *, messages: bool, recipients: bool
) -> None:
    assert policy.limits_messages(reply(code, text)) is messages
    assert policy.limits_recipients(reply(code, text)) is recipients


# -- How often, and how long -----------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "retries", "waited", "again"),
    [
        (1, 0, 0.0, False),
        (2, 1, 0.0, False),
        (2, 8, 99.0, True),
        (3, 8, 1.9, True),
        (3, 8, 2.0, False),
        (8, 8, 1.9, True),
        (9, 8, 1.9, False),
    ],
)
def test_retries_are_limited_by_number_and_all_but_the_first_two_by_time(
    failures: int, retries: int, waited: float, *, again: bool
) -> None:
    assert policy.may_retry(failures, retries, waited, patience=2.0) is again


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


# -- A queue ---------------------------------------------------------------------------


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
