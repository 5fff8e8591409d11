"""The faults of a chaos run: each step fails at random, in each way it can."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tests.faults import sometimes
from tests.faultserver import (
    Action,
    Answer,
    On,
    accept_then,
    drop,
    hang,
    raw,
    reply,
    stall,
)

if TYPE_CHECKING:
    from tests.faults import Phase

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


def script(seed: int, times: Counter[str]) -> Iterator[On]:
    """Yield the rules for a fault server, which count how often each fault occurs."""

    def counted(fault: str, action: Action) -> Action:
        def act(answer: Answer) -> Answer:
            times[fault] += 1
            return action(answer)

        return act

    for phase, kinds in KINDS.items():
        # One for each step, since the order of threads varies.
        dice = random.Random(f"{seed} {phase}")
        chance = len(kinds) * (0.01 if phase in OF_CONNECTIONS else 0.003)
        actions = [counted(f"{phase}: {kind}", each) for kind, each in kinds.items()]
        after = 100 if phase == "body" else 0
        yield On(phase, sometimes(dice, chance, *actions), after_bytes=after)
