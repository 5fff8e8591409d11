"""The faults of a chaos run: each step fails at random, in each way it can."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tests.faultserver import (
    Action,
    On,
    accept_then,
    drop,
    hang,
    raw,
    reply,
    stall,
)

if TYPE_CHECKING:
    from tests.faults import Moment, Phase

GARBAGE = raw(b"\xff\xfe200 ?\r\n")
HALF_A_REPLY = raw(b"250-2.0.0 que", close=True)

#: For any step.
ANYWHERE: Mapping[str, Action] = {
    "lost": drop(),
    "reset": drop(rst=True),
    "lost after the reply": drop(after=True),
    "silent": hang(),
    "slow": stall(0.02),
    "garbage": GARBAGE,
    "half a reply": HALF_A_REPLY,
    "421": reply(421, "4.3.2 closing", close=True),
}
REFUSED: Mapping[str, Action] = {
    "450": reply(450, "4.3.0 not now"),
    "550": reply(550, "5.7.1 no"),
}
KINDS: Mapping[Phase, Mapping[str, Action]] = {
    "banner": {**ANYWHERE, "554": reply(554, "5.3.2 no service", close=True)},
    "tls": {"lost": drop(), "garbage": raw(b"220 not TLS at all\r\n", close=True)},
    "ehlo": ANYWHERE,
    "auth": {
        **ANYWHERE,
        "454": reply(454, "4.7.0 not now"),
        "535": reply(535, "5.7.8 no"),
    },
    "rset": ANYWHERE,
    "mail": {**ANYWHERE, **REFUSED},
    "rcpt": {**ANYWHERE, **REFUSED, "452 4.5.3": reply(452, "4.5.3 too many")},
    "data": {**ANYWHERE, **REFUSED},
    "body": {"lost": drop(), "reset": drop(rst=True), "452": reply(452, "4.3.1 full")},
    "bdat": ANYWHERE,
    "dot": {
        **ANYWHERE,
        **REFUSED,
        "lost, but taken": drop(deliver=True),
        "reset, but taken": drop(rst=True, deliver=True),
        "silent, but taken": accept_then(hang()),
        "garbage, but taken": accept_then(GARBAGE),
        "half a reply, but taken": accept_then(HALF_A_REPLY),
    },
    "idle": {"lost": drop(), "421": reply(421, "4.4.2 idle", close=True)},
}
#: Faults of a connection; all others are a message's.
OF_CONNECTIONS = ("banner", "tls", "ehlo", "auth", "rset", "idle")


def chance(phase: Phase) -> float:
    """Return the probability of each kind of fault, whenever this step is taken."""
    return 0.01 if phase in OF_CONNECTIONS else 0.003


class FaultLog:
    """Counts the faults, and records which senders' messages met them."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.met: defaultdict[str, set[str]] = defaultdict(set)
        #: MAIL's argument, by the number of the message.
        self.senders: dict[int, str] = {}


class RandomFault(On):
    """A rule that acts at random, and logs when it does."""

    def __init__(
        self, phase: Phase, kind: str, action: Action, log: FaultLog, seed: int
    ) -> None:
        super().__init__(phase, action, after_bytes=100 if phase == "body" else 0)
        self.fault = f"{phase}: {kind}"
        self.log = log
        # One for each rule, since the order of threads varies.
        self.dice = random.Random(f"{seed} {self.fault}")

    def fits(self, moment: Moment) -> bool:
        """Decide at random; the server holds its lock meanwhile."""
        if not super().fits(moment):
            return False
        if moment.phase == "mail":
            sender = moment.argument.partition("<")[2].partition(">")[0]
            self.log.senders[moment.message] = sender
        happens = self.dice.random() < chance(moment.phase)
        if happens:
            self.log.times[self.fault] += 1
            if moment.phase not in OF_CONNECTIONS:
                self.log.met[self.log.senders[moment.message]].add(self.fault)
        return happens


def script(log: FaultLog, seed: int) -> Iterator[On]:
    """Yield the rules for a fault server."""
    for phase, kinds in KINDS.items():
        for kind, action in kinds.items():
            yield RandomFault(phase, kind, action, log, seed)
