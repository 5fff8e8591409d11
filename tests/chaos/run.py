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
from dataclasses import dataclass

from django.core.mail import EmailMessage

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintError
from django_lettermint.results import Outcome, SendResult
from tests.chaos.faults import script
from tests.faultserver import FEATURES, Delivery, FaultServer
from tests.sending import listening, result

THREADS = 8
#: How many of the mails may end as UNKNOWN, with and without idempotency. Without it,
#: each connection that is lost before the final reply leaves one.
RARE = {True: 0.03, False: 0.15}
#: Short, since silence is one of the faults, but enough for a busy machine.
TIMES = {"timeout": 1.0, "final_reply_timeout": 1.0, "deadline": 12}
#: Options, of which each batch takes one set.
VARIANTS: Sequence[dict[str, object]] = (
    {},
    {"chunking": True},
    {"pipelining": False},
    {"batch_connections": 2, "pool": {"max_size": 2}},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The result of a run."""

    #: How often each fault occurred.
    faults: Counter[str]
    outcomes: Counter[Outcome]
    #: The promises that were broken.
    broken: list[str]
    seconds: float

    def __str__(self) -> str:
        lines = [f"{times:4} x {each}" for each, times in self.faults.items()]
        lines += [f"{each.name}: {count}" for each, count in self.outcomes.items()]
        lines += [f"BROKEN: {what}" for what in self.broken]
        lines.append(f"{len(self.broken)} promises broken, {self.seconds:.0f} s")
        return "\n".join(lines)


def run(count: int, seed: int, *, idempotency: bool, tls: str) -> Run:
    """Send mails in threads, and account for each."""
    faults: Counter[str] = Counter()
    messages = {each.from_email: each for each in _mails(count)}
    before = _held()
    began = time.monotonic()
    server = FaultServer(
        script(seed, faults),
        tls=tls,
        features=(*FEATURES, "CHUNKING"),
        idempotency=idempotency,
    )
    with server, listening() as heard:
        options = server.options(idempotency=idempotency, **TIMES)
        _send_all(list(messages.values()), options, random.Random(seed))
        pool.close_pools()
        broken = [f"the server saw {what}" for what in server.violations]
        if not server.wait_for(lambda: not server.open_connections):
            broken.append(f"{server.open_connections} connections are still open")
    broken += _leaked(before)
    broken += _miscounted(messages, server.deliveries)
    broken += _garbled(messages, server.deliveries)
    reported = [each[0] for each in heard.sent] + [each[0] for each in heard.failed]
    signals = Counter(message.from_email for message in reported)
    broken += [
        f"{each}: {signals[each]} signals" for each in messages if signals[each] != 1
    ]
    outcomes = Counter(result(each).outcome for each in messages.values())
    if outcomes[Outcome.UNKNOWN] > count * RARE[idempotency]:
        broken.append("more mails are UNKNOWN than promised")
    return Run(
        faults=faults,
        outcomes=outcomes,
        broken=broken,
        seconds=time.monotonic() - began,
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


def _miscounted(
    messages: Mapping[str, EmailMessage], deliveries: Sequence[Delivery]
) -> Iterator[str]:
    delivered = Counter(
        (each.mail_from, who) for each in deliveries for who in each.recipients
    )
    for sender, message in messages.items():
        found = result(message)
        for who in message.to:
            copies = delivered[sender, who]
            if copies not in _promised(found, who):
                yield f"{found.outcome.name} to {who}, delivered {copies} times"


def _promised(found: SendResult, who: str) -> tuple[int, ...]:
    """Return how many copies there may be for a recipient."""
    if found.outcome is Outcome.NOT_SENT or who not in found.recipients:
        return (0,)
    return {"queued": (1,), "unknown": (0, 1)}.get(found.recipients[who].status, (0,))


def _garbled(
    messages: Mapping[str, EmailMessage], deliveries: Sequence[Delivery]
) -> Iterator[str]:
    for delivery in deliveries:
        body = delivery.content.partition(b"\r\n\r\n")[2].decode()
        if body.replace("\r\n", "\n").rstrip("\n") != messages[delivery.mail_from].body:
            yield f"{delivery.mail_from}: delivered with another content"
