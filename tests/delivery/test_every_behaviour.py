"""Whatever a relay does at whichever step, each promise about a list holds.

Every script with up to two faults is run, in memory; LETTERMINT_FAULTS=3 takes minutes.
"""

from __future__ import annotations

import os
from dataclasses import replace
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
from tests.delivery.memory_relay import MemoryRelay, Script, behaviours

FAULTS = int(os.environ.get("LETTERMINT_FAULTS", "2"))
#: Faults after which the relay may have the message, though no reply says so.
IN_DOUBT = {
    *("close", "silence", "garbage"),
    *("deliver and close", "deliver in silence", "deliver, then garbage"),
}
REFUSALS = {"450", "550", "421 to the end"}


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
    """Deliver messages over one connection at a time, without ever sleeping."""
    state = RelayState()

    def connect(until: float, timeout: float) -> Session:
        return relay.connect(state)

    pool: ConnectionPool[Session] = ConnectionPool(connect, PoolConfig(max_size=1))
    messages = [message(number, recipients, settings) for number in range(count)]
    Delivery(settings, pool, sleep=lambda seconds: None).deliver(messages)
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
            assert REFUSALS & met, script
        else:
            assert IN_DOUBT & (set(all_faults) if window else met), script
        for who, what in status.items():
            assert what == "unknown" or (what == "queued") is (who in taken), script
        if not met:
            assert set(status.values()) == {"queued"}, script
        tries = sum(each.attempts for each in message_submissions)
        assert tries <= 1 + 2 * len(all_faults), script
    assert relay.logins <= 1 + len(all_faults), script


@pytest.mark.slow
@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
@pytest.mark.parametrize("pipelining", [False, True], ids=["single", "pipelined"])
@pytest.mark.parametrize("keys", [False, True], ids=["no-keys", "keys"])
@pytest.mark.parametrize(("count", "recipients"), [(3, 1), (2, 2)])
def test_each_promise_holds_whatever_the_relay_does(
    count: int, recipients: int, *, keys: bool, pipelining: bool, chunking: bool
) -> None:
    settings = config(idempotency=keys, pipelining=pipelining, chunking=chunking)

    def run(script: Script) -> None:
        relay = MemoryRelay(script, knows_keys=keys)
        messages = deliver(relay, count, recipients, settings)
        check(relay, messages, window=keys and chunking)

    assert behaviours(run, faults=FAULTS) > 500


@pytest.mark.parametrize("code", ["450", "503", "550"])
@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
def test_a_relay_that_refuses_pipelining_behind_a_message_gets_all_of_a_list(
    code: str, *, chunking: bool
) -> None:
    relay = MemoryRelay(Script(), knows_keys=True, dislikes=code)
    messages = deliver(relay, 50, 1, config(idempotency=True, chunking=chunking))
    assert {each.outcome for [each] in messages} == {Outcome.SENT}
    assert set(relay.delivered.values()) == {1}
    assert relay.logins == 1


@pytest.mark.parametrize("limit", [1, 10])
@pytest.mark.parametrize("chunking", [False, True], ids=["data", "bdat"])
def test_a_limit_of_messages_for_each_session_costs_a_login_and_no_message(
    limit: int, *, chunking: bool
) -> None:
    relay = MemoryRelay(Script(), knows_keys=True, session_limit=limit)
    settings = config(idempotency=True, chunking=chunking)
    messages = deliver(relay, 50, 1, settings)
    assert {each.outcome for [each] in messages} == {Outcome.SENT}
    assert relay.logins == 50 // limit


def test_a_relay_that_refuses_everything_sees_one_login() -> None:
    relay = MemoryRelay(Script(), knows_keys=False, session_limit=0)
    messages = deliver(relay, 50, 1, replace(config(), idempotency=False))
    assert {each.outcome for [each] in messages} == {Outcome.NOT_SENT}
    assert relay.logins == 1
