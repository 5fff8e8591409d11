"""Many mails to a server that fails at random: a short run of `tests.chaos`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from django_lettermint.results import Outcome
from tests.chaos.account import report
from tests.chaos.run import run
from tests.faultserver import Action, Answer, On, accept_then, reply


@pytest.mark.procfs
@pytest.mark.parametrize(
    ("idempotency", "tls"), [(True, "implicit"), (False, "starttls")]
)
def test_no_promise_is_broken_among_random_faults(
    *, idempotency: bool, tls: str
) -> None:
    account = run(400, seed=404, idempotency=idempotency, tls=tls)
    assert account.broken == [], report(account)
    # Enough faults occurred, and most mails were sent.
    assert sum(account.faults.times.values()) > 50
    assert account.outcomes[Outcome.SENT] > 300


def confirm_only(answer: Answer) -> Answer:
    return replace(answer, code=0)


@pytest.mark.procfs
@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (confirm_only, "SENT to 4-1@example.org, delivered 0 times"),
        (accept_then(reply(550)), "NOT_SENT to 4-1@example.org, delivered 1 times"),
    ],
)
def test_a_server_that_reports_the_wrong_outcome_is_detected(
    answer: Action, found: str
) -> None:
    account = run(10, seed=1, idempotency=True, script=[On("dot", do=answer)])
    assert any(what.startswith(found) for what in account.broken)
    assert f"BROKEN: {found}" in report(account)
