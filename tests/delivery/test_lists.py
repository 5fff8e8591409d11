"""A list of messages over one connection: each ends by itself."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    LettermintError,
    PoolTimeout,
)
from django_lettermint.results import Outcome, Phase
from tests.faultserver import FEATURES, FaultServer, On, drop, hang, raw, reply
from tests.sending import (
    SHORT,
    Heard,
    backend,
    cases,
    interruptible,
    listening,
    mails,
    relay,
    result,
    spoken,
    strike_and_wait,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.mail import EmailMessage

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


def to(*numbers: int) -> dict[str, int]:
    """Return what was delivered if these messages were, once each."""
    return {f"{number}@example.org": 1 for number in numbers}


def fail(
    server: FaultServer, messages: list[EmailMessage], **options: Any
) -> tuple[list[Outcome], Any, Heard]:
    """Send a list that does not all go out: return each outcome, error and signals."""
    options = {"batch_connections": 1, **options}
    with listening() as heard, pytest.raises(LettermintError) as raised:
        backend(server, **options).send_messages(messages)
    outcomes = [result(each).outcome for each in messages]
    # One signal for each message, in the order of the list.
    sent = [each for each in messages if result(each).outcome is SENT]
    assert [each[0] for each in heard.sent] == sent
    assert [each[0] for each in heard.failed] == [
        each for each in messages if each not in sent
    ]
    assert [*raised.value.results] == [result(each) for each in messages]
    assert raised.value is heard.failed[0][2]
    return outcomes, raised.value, heard


@pytest.mark.parametrize(
    "options",
    cases(
        pipelined={}, one_by_one={"pipelining": False}, in_windows={"chunking": True}
    ),
)
def test_a_list_takes_one_connection_and_arrives_in_order(options: Any) -> None:
    with FaultServer(features=(*FEATURES, "CHUNKING")) as server:
        sender = backend(server, batch_connections=1, **options)
        assert sender.send_messages(mails(60)) == 60
        assert [each.recipients[0] for each in server.deliveries] == [
            f"{number}@example.org" for number in range(1, 61)
        ]
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("script", "kind", "connections"),
    [
        ([On("auth", do=reply(535))], AuthenticationFailed, 1),
        ([On("banner", do=reply(554))], ConnectFailed, 1),
        ([On("banner", do=drop())], ConnectFailed, 3),
        ([On("ehlo", do=reply(421, close=True))], ConnectFailed, 3),
        ([On("tls", do=raw(b"x" * 99))], ConnectFailed, 3),
    ],
    ids=["auth", "site", "connect", "ehlo", "tls"],
)
def test_what_any_message_would_meet_fails_the_rest_at_once(
    script: list[On], kind: type[LettermintError], connections: int
) -> None:
    with FaultServer(script) as server:
        outcomes, _, heard = fail(server, mails(60), retries=2)
        assert outcomes == [NOT_SENT] * 60
        assert server.connections == connections
        # Each has its own error, with its own result.
        errors: list[Any] = [error for _, _, error in heard.failed]
        assert {type(error) for error in errors} == {kind}
        assert len({id(error) for error in errors}) == 60
        assert [error.result for error in errors] == [each[1] for each in heard.failed]


@pytest.mark.parametrize("phase", ["banner", "mail"])
def test_a_relay_that_falls_silent_fails_the_rest_within_a_few_timeouts(
    phase: Any,
) -> None:
    script = [On(phase, connection=1, message=3, do=hang())]
    script += [On(phase, connection=number, do=hang()) for number in range(2, 99)]
    if phase == "banner":
        script.append(On("mail", message=3, do=drop()))
    with FaultServer(script) as server:
        outcomes, _, _ = fail(server, mails(50), timeout=SHORT, retries=1)
        assert outcomes == [SENT] * 2 + [NOT_SENT] * 48
        assert server.connections <= 5
        assert server.delivered == to(1, 2)


def breaking(*numbers: int) -> list[On]:
    """Return rules by which these messages break every connection."""
    return [On("rcpt", match=f"^TO:<{each}@", do=drop()) for each in numbers]


def test_a_message_that_breaks_every_connection_stops_none_of_the_others() -> None:
    with FaultServer(breaking(2, 4)) as server:
        outcomes, error, _ = fail(server, mails(6), retries=2)
        assert outcomes == [SENT, NOT_SENT, SENT, NOT_SENT, SENT, SENT]
        assert isinstance(error, ConnectionLost)
        assert server.delivered == to(1, 3, 5, 6)
        # Once on a connection that had served, then as often as a connection may fail.
        assert Counter(spoken(server))["RCPT"] >= 4 + 2 * 4


def test_a_relay_that_hangs_up_on_two_messages_in_a_row_counts_as_gone() -> None:
    with FaultServer(breaking(2, 3)) as server:
        outcomes, _, heard = fail(server, mails(6), retries=1)
        assert outcomes == [SENT] + [NOT_SENT] * 5
        assert server.delivered == to(1)
        # One that had served, then two for each of the messages.
        assert server.connections == 5
        assert "hung up on one message after the other" in str(heard.failed[-1][2])


def test_a_batch_without_room_in_the_pool_fails_and_a_later_one_is_sent() -> None:
    with FaultServer() as server, ExitStack() as holding:
        options: Any = {"pool": {"max_size": 1, "timeout": 0.01}}
        holding.enter_context(pool.lease(relay(server, **options), seconds=5))

        def messages() -> Iterator[EmailMessage]:
            yield from mails(25)  # one batch
            holding.close()
            yield from mails(5)

        with pytest.raises(PoolTimeout) as raised:
            backend(server, **options).send_messages(messages())
        ends = [(each.outcome, each.phase) for each in raised.value.results]
        assert ends == [(NOT_SENT, Phase.POOL)] * 25 + [(SENT, Phase.DONE)] * 5


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("phase", "third", "pipelining"),
    [
        ("rcpt", NOT_SENT, False),
        ("dot", UNKNOWN, False),
        ("dot", UNKNOWN, True),
    ],
)
def test_an_interrupt_leaves_each_message_with_what_is_certain(
    phase: Any, third: Outcome, pipelining: Any, kind: type[BaseException]
) -> None:
    messages = mails(5)
    with FaultServer() as server, interruptible(kind) as strike:
        server.script.append(On(phase, message=3, do=strike_and_wait(strike)))
        with listening() as heard, pytest.raises(kind):
            backend(server, pipelining=pipelining).send_messages(messages)
        outcomes = [result(each).outcome for each in messages]
        assert outcomes == [SENT, SENT, third, NOT_SENT, NOT_SENT]
        assert [each[0] for each in heard.sent] == messages[:2]
        assert [each[0] for each in heard.failed] == messages[2:]
        assert server.delivered == to(1, 2)
        assert server.wait_for(lambda: server.open_connections == 0)
