"""Many mails to a server that fails at random: a short run of `tests.chaos`."""

from __future__ import annotations

import pytest

from django_lettermint.results import Outcome
from tests.chaos.run import run


@pytest.mark.procfs
@pytest.mark.parametrize(
    ("idempotency", "tls"), [(True, "implicit"), (False, "starttls")]
)
def test_no_promise_is_broken_among_random_faults(
    *, idempotency: bool, tls: str
) -> None:
    done = run(250, seed=404, idempotency=idempotency, tls=tls)
    assert done.broken == [], done
    # Enough faults occurred, and most mails were sent.
    assert done.faults.total() > 30
    assert done.outcomes[Outcome.SENT] > 200
