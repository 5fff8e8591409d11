"""Run the receivers of each event once, however often Lettermint delivers it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from django.core.cache import cache
from django.db import connection, transaction

#: Seconds after which a copy may run although the first has not ended: its process was
#: killed, or its transaction failed to commit.
CLAIM_SECONDS = 300
#: Seconds for which a finished event is remembered: longer than Lettermint retries.
REMEMBER_SECONDS = 3 * 24 * 3600

_RUNNING, _DONE = "running", "done"


def run_once(
    event_id: str, work: Callable[[], object], *, tenant: str | None = None
) -> bool:
    """Run `work` unless it ran for this event; return False while another copy runs it.

    Events of different tenants are different events, even with the same id. An
    exception of `work` propagates, and the event can run again.
    """
    key = f"django_lettermint.webhook:{event_id}"
    if tenant is not None:
        # Hashed: memcached allows 250 bytes, and no blanks.
        digest = hashlib.sha256(tenant.encode()).hexdigest()[:32]
        key = f"django_lettermint.webhook.tenant:{digest}:{event_id}"
    # add() is the only atomic "set if absent" that every shared cache has.
    if not cache.add(key, _RUNNING, CLAIM_SECONDS):
        return bool(cache.get(key) == _DONE)
    with ExitStack() as on_failure:
        on_failure.callback(cache.delete, key)
        work()
        on_failure.pop_all()
    done = partial(cache.set, key, _DONE, REMEMBER_SECONDS)
    # The receivers' work is then committed after the view. Marked as done before that,
    # the event would be lost if the commit fails.
    if connection.settings_dict["ATOMIC_REQUESTS"]:
        transaction.on_commit(done)
    else:
        done()
    return True
