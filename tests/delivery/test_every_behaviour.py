"""Whatever a relay does at whichever step, each promise about a list holds.

Every script with up to two faults is run, in memory; LETTERMINT_FAULTS=3 takes minutes.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from django_lettermint.conf import PoolConfig, RelayConfig, backend_config
from django_lettermint.delivery import (
    Delivery,
    Submission,
    build_error,
    build_result,
    submissions,
)
from django_lettermint.envelope import Envelope
from django_lettermint.pool import ConnectionPool
from django_lettermint.results import Outcome
from django_lettermint.smtp import RelayState, Session
from tests.delivery.memory_relay import (
    HANDSHAKE,
    USUAL,
    Choices,
    MemoryRelay,
    Script,
    behaviours,
)

FAULTS = int(os.environ.get("LETTERMINT_FAULTS", "2"))
#: Faults after which the relay may have the message, though no reply says so.
IN_DOUBT = {
    *("close", "silence", "garbage"),
    *("deliver and close", "deliver in silence", "deliver, then garbage"),
}
REFUSALS = {"450", "550", "421 to the end"}
#: What any further message would meet as well.
FOR_GOOD = {"554 greeting", "550 EHLO", "554 STARTTLS", "535 AUTH"}


def config(**options: Any) -> RelayConfig:
    found = backend_config({"api_token": "t", "host": "relay.example", **options})
    return found.relay


def message(number: int, recipients: int, relay: RelayConfig) -> list[Submission]:
    """Return the submissions of a message that is named by its sender."""
    envelope = Envelope(
        mail_from=f"{number}@from.example",
        recipients=tuple(f"{who}@to.example" for who in range(recipients)),
        header=b"Subject: x\r\n",
        body=b".dot\r\n",
        message_id=str(number),
        idempotency_key=f"key-{number}" if relay.idempotency else None,
    )
    return submissions([envelope], relay)


def deliver(
    relay: MemoryRelay, count: int, recipients: int, settings: RelayConfig
) -> list[list[Submission]]:
    """Deliver messages over one connection at a time, without ever sleeping.

    Where the relay may act on an idle connection, it idles after the first message.
    """
    messages = [message(number, recipients, settings) for number in range(count)]
    state = RelayState()
    pool: ConnectionPool[Session] = ConnectionPool(
        lambda until, timeout: relay.connect(state), PoolConfig(max_size=1)
    )
    first = 1 if len(relay.choices.idle) > 1 else count
    for part in (messages[:first], messages[first:]):
        relay.idle()  # the first time, there are no connections
        Delivery(settings, pool, sleep=lambda seconds: None).deliver(part)
    for session in pool.close():
        session.close()
    return messages


def check(
    relay: MemoryRelay, messages: list[list[Submission]], *, window: bool
) -> None:
    """Compare what we say with what the relay did.

    With a `window`, several messages are unconfirmed at once, by their keys.
    """
    script = relay.script
    all_faults = [fault for faults in script.faults.values() for fault in faults]
    for number, message_submissions in enumerate(messages):
        name = f"{number}@from.example"
        met = set(script.faults[name])
        turned_away = FOR_GOOD & set(script.faults[""])
        assert all(each.done for each in message_submissions), script
        result = build_result(message_submissions)
        error = build_error(message_submissions)
        assert (error is None) is (result.outcome is Outcome.SENT)
        taken = {who for who in result.recipients if relay.delivered[name, who]}
        status = {who: answer.status for who, answer in result.recipients.items()}
        assert all(relay.delivered[name, who] <= 1 for who in taken), script
        if result.outcome is Outcome.SENT:
            assert "queued" in status.values(), script
        elif result.outcome is Outcome.NOT_SENT:
            assert not taken, script
            assert REFUSALS & met or turned_away, script
        else:
            assert IN_DOUBT & (set(all_faults) if window else met), script
        for who, what in status.items():
            assert what == "unknown" or (what == "queued") is (who in taken), script
        if not (met or turned_away):
            assert set(status.values()) == {"queued"}, script
        tries = sum(each.attempts for each in message_submissions)
        assert tries <= 1 + 2 * len(all_faults), script
    assert relay.logins <= 1 + len(all_faults), script


def walk(
    choices: Choices, count: int, recipients: int, *, faults: int, **options: bool
) -> int:
    """Check every behaviour; return how many there were."""
    settings = config(**options)

    def run(script: Script) -> None:
        knows_keys = settings.idempotency
        relay = MemoryRelay(script, knows_keys=knows_keys, choices=choices)
        messages = deliver(relay, count, recipients, settings)
        check(relay, messages, window=knows_keys and settings.chunking)

    return behaviours(run, faults=faults)


CHUNKING = pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
PIPELINING = pytest.mark.parametrize(
    "pipelining", [False, True], ids=["single", "pipelined"]
)
KEYS = pytest.mark.parametrize("keys", [False, True], ids=["no-keys", "keys"])


@CHUNKING
@PIPELINING
@KEYS
@pytest.mark.parametrize(
    "faults", [FAULTS - 1, pytest.param(FAULTS, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("count", "recipients"), [(3, 1), (2, 2)])
def test_each_promise_holds_whatever_the_relay_does(
    count: int,
    recipients: int,
    faults: int,
    *,
    keys: bool,
    pipelining: bool,
    chunking: bool,
) -> None:
    options = {"idempotency": keys, "pipelining": pipelining, "chunking": chunking}
    assert walk(USUAL, count, recipients, faults=faults, **options) > 40**faults / 4


@KEYS
def test_each_promise_holds_whatever_is_refused_before_the_login(*, keys: bool) -> None:
    assert walk(HANDSHAKE, 3, 1, faults=FAULTS, idempotency=keys) > 200
