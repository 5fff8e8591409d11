"""Each event runs its receivers once, however often Lettermint delivers it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from django.core.cache import cache
from django.db import connection, transaction

#: Seconds after which a copy may run although the first never reported back (its
#: process was killed, or its transaction failed to commit).
CLAIM_SECONDS = 300
#: Seconds for which a finished event is known: longer than Lettermint tries again.
REMEMBER_SECONDS = 3 * 24 * 3600

_RUNNING, _DONE = "running", "done"


def run_once(
    event_id: str, work: Callable[[], object], *, tenant: str | None = None
) -> bool:
    """Run `work` unless it ran for this event; False while a copy is at work on it.

    Events of two tenants are two events, whatever their ids. When `work` raises, the event is free again and the exception goes on.
    """
    key = f"django_lettermint.webhook:{event_id}"
    if tenant is not None:
        # Hashed: memcached allows no blanks, and 250 bytes.
        digest = hashlib.sha256(tenant.encode()).hexdigest()[:32]
        key = f"django_lettermint.webhook.tenant:{digest}:{event_id}"
    # add() is the one atomic "only if absent" that every shared cache offers.
    if not cache.add(key, _RUNNING, CLAIM_SECONDS):
        return bool(cache.get(key) == _DONE)
    with ExitStack() as on_failure:
        on_failure.callback(cache.delete, key)
        work()
        on_failure.pop_all()
    done = partial(cache.set, key, _DONE, REMEMBER_SECONDS)
    # The receivers' work is then saved only after the view: "done" said too early would
    # lose the event when the commit fails.
    if connection.settings_dict["ATOMIC_REQUESTS"]:
        transaction.on_commit(done)
    else:
        done()
    return True
