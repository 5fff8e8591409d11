"""The result of a chaos run, compared with what the package promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.results import Outcome, SendResult
from tests.sending import result

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from tests.chaos.faults import FaultLog
    from tests.faultserver import Delivery

#: Percent of the mails that may end as UNKNOWN, with and without idempotency. Without it,
#: each connection that is lost before the final reply leaves one.
RARE = {True: 3.0, False: 15.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The result of a run."""

    idempotency: bool
    faults: FaultLog
    #: Messages by sender; each has its own.
    messages: Mapping[str, EmailMessage]
    deliveries: Sequence[Delivery]
    #: How many messages of each sender were reported as sent or as failed.
    signals: Counter[str]
    seconds: float
    #: Problems that belong to no message.
    troubles: Sequence[str]

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Return how many messages ended in each way."""
        return Counter(result(each).outcome for each in self.messages.values())

    @property
    def broken(self) -> list[str]:
        """Return the promises that were broken."""
        broken = [*self.troubles, *_miscounted(self), *_garbled(self)]
        broken += [
            f"{sender}: {self.signals[sender]} signals"
            for sender in self.messages
            if self.signals[sender] != 1
        ]
        unknown = self.outcomes[Outcome.UNKNOWN]
        if unknown * 100 > len(self.messages) * RARE[self.idempotency]:
            broken.append(f"{unknown} mails are UNKNOWN, more than promised")
        return broken


def _miscounted(account: Account) -> Iterator[str]:
    delivered = Counter(
        (each.mail_from, who) for each in account.deliveries for who in each.recipients
    )
    for sender, message in account.messages.items():
        found = result(message)
        for who in message.to:
            copies = delivered[sender, who]
            if copies not in _promised(found, who):
                outcome, faults = found.outcome.name, account.faults.of(sender)
                yield f"{outcome} to {who}, delivered {copies} times ({faults})"


def _garbled(account: Account) -> Iterator[str]:
    for delivery in account.deliveries:
        body = delivery.content.partition(b"\r\n\r\n")[2].decode()
        sent = account.messages[delivery.mail_from].body
        if body.replace("\r\n", "\n").rstrip("\n") != sent:
            yield f"{delivery.mail_from}: delivered with another content"


def _promised(found: SendResult, who: str) -> tuple[int, ...]:
    """Return how many copies there may be for a recipient."""
    if found.outcome is Outcome.NOT_SENT or who not in found.recipients:
        return (0,)
    return {"queued": (1,), "unknown": (0, 1)}.get(found.recipients[who].status, (0,))


def report(account: Account) -> str:
    """Return the faults, the outcomes, and the promises that were broken."""
    lines = [f"{times:4} x {fault}" for fault, times in account.faults.times.items()]
    lines += [f"{outcome.name}: {count}" for outcome, count in account.outcomes.items()]
    lines += [f"BROKEN: {what}" for what in account.broken]
    lines.append(f"{len(account.broken)} promises broken, {account.seconds:.0f} s")
    return "\n".join(lines)
