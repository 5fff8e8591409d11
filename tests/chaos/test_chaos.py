"""Many mails to a server that fails at random: a short run of `tests.chaos`."""

from __future__ import annotations

import pytest

from django_lettermint.results import Outcome
from tests.chaos.account import report
from tests.chaos.run import run


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
