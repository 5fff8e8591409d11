"""A run of chaos: many mails, many threads, one server that fails at random."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from django.core.mail import EmailMessage

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintError
from tests.chaos.account import Account
from tests.chaos.faults import FaultLog
from tests.faultserver import FEATURES, FaultServer
from tests.sending import listening

THREADS = 8
#: Short, since silence is one of the faults, but enough for a busy machine.
TIMES = {"timeout": 1.0, "final_reply_timeout": 1.0, "deadline": 12}
#: Options, of which each batch takes one set.
VARIANTS: Sequence[dict[str, object]] = (
    {},
    {"chunking": True},
    {"pipelining": False},
    {"batch_connections": 2, "pool": {"max_size": 2}},
)


def run(count: int, seed: int, *, idempotency: bool, tls: str) -> Account:
    """Send mails in threads and account for each."""
    faults = FaultLog(seed)
    messages = {each.from_email: each for each in _mails(count)}
    before = _held()
    began = time.monotonic()
    server = FaultServer(
        faults.script(),
        tls=tls,
        features=(*FEATURES, "CHUNKING"),
        idempotency=idempotency,
    )
    with server, listening() as heard:
        options = server.options(idempotency=idempotency, **TIMES)
        _send_all(list(messages.values()), options, random.Random(seed))
        pool.close_pools()
        troubles = [f"the server saw {what}" for what in server.violations]
        if not server.wait_for(lambda: not server.open_connections):
            troubles.append(f"{server.open_connections} connections are still open")
    reported = [each[0] for each in heard.sent] + [each[0] for each in heard.failed]
    return Account(
        idempotency=idempotency,
        faults=faults,
        messages=messages,
        deliveries=server.deliveries,
        signals=Counter(message.from_email for message in reported),
        seconds=time.monotonic() - began,
        troubles=[*troubles, *_leaked(before)],
    )


def _mails(count: int) -> Iterator[EmailMessage]:
    for number in range(1, count + 1):
        copies = 3 if number % 5 == 0 else 1
        to = [f"{number}-{copy}@example.org" for copy in range(1, copies + 1)]
        dots, lines = ".\n" * (number % 3), "text\n" * (number % 200)
        body = f"Mail {number}\n{dots}{lines}end"
        yield EmailMessage("Hello", body, f"{number}@example.com", to)


def _send_all(
    messages: list[EmailMessage], options: Mapping[str, object], dice: random.Random
) -> None:
    """Send them in batches of one to ten, in several threads."""
    backends = [EmailBackend(**options, **variant) for variant in VARIANTS]

    def send(backend: EmailBackend, batch: Sequence[EmailMessage]) -> None:
        with contextlib.suppress(LettermintError):
            backend.send_messages(batch)

    with ThreadPoolExecutor(THREADS) as threads:
        sending = []
        while messages:
            size = dice.randint(1, 10)
            batch, messages[:size] = messages[:size], []
            sending.append(threads.submit(send, dice.choice(backends), batch))
        for each in sending:
            each.result()


def _held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def _leaked(before: tuple[int, int]) -> Iterator[str]:
    for what, old, new in zip(("files", "threads"), before, _held(), strict=True):
        if new > old:
            yield f"leaked {what}: {old} became {new}"
