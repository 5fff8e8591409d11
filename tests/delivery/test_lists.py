"""A list of messages over sockets: each ends by itself, and none is delivered twice.

`test_every_behaviour` walks all faults in memory; here are those that need a network,
and one of each kind.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    LettermintInvalidMessage,
    MessageRefused,
    PoolTimeout,
)
from django_lettermint.results import Outcome, Phase
from tests.faultserver import (
    FEATURES,
    FaultServer,
    On,
    drop,
    gate,
    hang,
    raw,
    reply,
    stall,
)
from tests.sending import (
    SHORT,
    Heard,
    backend,
    cases,
    interruptible,
    listening,
    mail,
    mails,
    relay,
    result,
    spoken,
    status,
    strike_and_wait,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from django.core.mail import EmailMessage


SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN
CHUNKING = (*FEATURES, "CHUNKING")
#: DATA, pipelined behind the end of the message before and not, and BDAT in windows.
WAYS = cases(pipelined={}, one_by_one={"pipelining": False}, chunks={"chunking": True})


def to(*numbers: int) -> dict[str, int]:
    """Return what was delivered if these messages were, once each."""
    return {f"{number}@example.org": 1 for number in numbers}


def send(
    server: FaultServer, messages: Sequence[EmailMessage], **options: Any
) -> tuple[list[Outcome], Any, Heard]:
    """Send a list; return each outcome, the error, and the signals."""
    error: Any = None
    count = None
    with listening() as heard:
        try:
            count = backend(server, **options).send_messages(messages)
        except LettermintError as raised:
            error = raised
        except LettermintInvalidMessage as raised:
            error = raised
    outcomes = [result(each).outcome for each in messages]
    # One signal a message, in the order of the list.
    assert [each[0] for each in heard.sent] == [
        each for each in messages if result(each).outcome is SENT
    ]
    assert [each[0] for each in heard.failed] == [
        each for each in messages if result(each).outcome is not SENT
    ]
    if error:
        assert [*error.results] == [result(each) for each in messages]
        assert error is heard.failed[0][2]
    else:
        assert count == len(messages)
    return outcomes, error, heard


def all_but(number: int, outcome: Outcome, count: int) -> list[Outcome]:
    outcomes = [SENT] * count
    outcomes[number - 1] = outcome
    return outcomes


@pytest.mark.parametrize("options", WAYS)
def test_a_list_takes_one_connection_and_arrives_in_order(options: Any) -> None:
    with FaultServer(features=CHUNKING) as server:
        outcomes, error, _ = send(server, mails(60), batch_connections=1, **options)
        assert outcomes == [SENT] * 60
        assert error is None
        assert [each.recipients[0] for each in server.deliveries] == [*to(*range(1, 61))]  # fmt: skip
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize("options", WAYS)
def test_a_refusal_within_the_content_stops_none_of_the_others(options: Any) -> None:
    messages = mails(4)
    messages[1].body = ("x" * 70 + "\n") * 30_000
    early = On("body", after_bytes=50_000, do=reply(552, "too big"))
    with FaultServer([early], features=CHUNKING, rcvbuf=4096, idempotency=True) as server:  # fmt: skip
        outcomes, error, _ = send(server, messages, timeout=SHORT, **options)
        assert outcomes == all_but(2, NOT_SENT, 4)
        assert isinstance(error, MessageRefused)
        assert server.delivered == to(1, 3, 4)


def test_a_message_that_is_invalid_stops_none_of_the_others() -> None:
    messages = mails(4)
    messages[0].subject = "a\r\nBcc: x@y.test"
    messages[2].tag = "no:tag"  # type: ignore[attr-defined]
    with FaultServer() as server:
        outcomes, error, heard = send(server, messages)
        assert outcomes == [NOT_SENT, SENT, NOT_SENT, SENT]
        assert isinstance(error, LettermintInvalidMessage)
        assert "subject" in str(error)
        assert "tag" in str(heard.failed[1][2])
        assert server.delivered == to(2, 4)
        assert server.connections == 1


def test_a_list_of_invalid_messages_needs_no_connection() -> None:
    messages = mails(3)
    for each in messages:
        each.subject = "a\nb"
    with FaultServer() as server:
        outcomes, _, heard = send(server, messages)
        assert outcomes == [NOT_SENT] * 3
        assert len({id(each[2]) for each in heard.failed}) == 3
        assert server.connections == 0


@pytest.mark.parametrize("options", WAYS)
def test_a_message_the_relay_cannot_take_stops_none_of_the_others(options: Any) -> None:
    messages = mails(4)
    messages[1].body = "x" * 2000
    with FaultServer(features=("SIZE 1500", "PIPELINING", "CHUNKING")) as server:
        outcomes, error, _ = send(server, messages, **options)
        assert outcomes == all_but(2, NOT_SENT, 4)
        assert isinstance(error, LettermintInvalidMessage)
        assert server.delivered == to(1, 3, 4)
        assert server.connections == 1


# -- what fails all ---------------------------------------------------------------------------


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
        outcomes, error, heard = send(server, mails(60), retries=2)
        assert outcomes == [NOT_SENT] * 60
        assert isinstance(error, kind)
        assert server.connections == connections
        assert all(type(each[2]) is kind for each in heard.failed)
        # Each has its own error, with its own result.
        assert len({id(each[2]) for each in heard.failed}) == 60
        assert all(error.result is result(message) for message, _, error in heard.failed)  # type: ignore[attr-defined]  # fmt: skip


@pytest.mark.parametrize("phase", ["banner", "mail"])
def test_a_relay_that_falls_silent_fails_the_rest_within_a_few_timeouts(
    phase: Any,
) -> None:
    script = [On(phase, connection=1, message=3, do=hang())]
    script += [On(phase, connection=number, do=hang()) for number in range(2, 99)]
    if phase == "banner":
        script.append(On("mail", message=3, do=drop()))
    with FaultServer(script) as server:
        options = {"timeout": SHORT, "retries": 1, "batch_connections": 1}
        outcomes, error, _ = send(server, mails(50), **options)
        assert outcomes == [SENT] * 2 + [NOT_SENT] * 48
        assert isinstance(error, ConnectFailed | ConnectionLost)
        assert server.connections <= 5
        assert server.delivered == to(1, 2)


def test_a_message_that_breaks_every_connection_stops_none_of_the_others() -> None:
    with FaultServer(breaking(2, 4)) as server:
        outcomes, error, _ = send(server, mails(6), retries=2)
        assert outcomes == [SENT, NOT_SENT, SENT, NOT_SENT, SENT, SENT]
        assert isinstance(error, ConnectionLost)
        assert server.delivered == to(1, 3, 5, 6)
        # Once on a connection that had served, then as often as a connection may fail.
        assert Counter(spoken(server))["RCPT"] >= 4 + 2 * 4


def breaking(*numbers: int) -> list[On]:
    """Return rules by which these messages break every connection."""
    return [On("rcpt", match=f"^TO:<{each}@", do=drop()) for each in numbers]


def test_a_relay_that_hangs_up_on_two_messages_in_a_row_counts_as_gone() -> None:
    with FaultServer(breaking(2, 3)) as server:
        outcomes, _, heard = send(server, mails(6), retries=1)
        assert outcomes == [SENT] + [NOT_SENT] * 5
        assert server.delivered == to(1)
        # One that had served, then two for each of the messages.
        assert server.connections == 5
        assert "hung up on one message after the other" in str(heard.failed[-1][2])  # fmt: skip


def test_a_pool_without_room_fails_each_batch_after_its_timeout() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("mail", message=1, do=gate(release, reached))]) as server:
        options = {"pool": {"max_size": 1, "timeout": SHORT}}
        holder = threading.Thread(
            target=backend(server, **options).send_messages, args=([mail()],)
        )
        holder.start()
        assert reached.wait(5)
        outcomes, error, _ = send(server, mails(30), **options)
        assert outcomes == [NOT_SENT] * 30
        assert isinstance(error, PoolTimeout)
        assert {each.phase for each in error.results} == {Phase.POOL}
        release.set()
        holder.join(5)
        assert server.delivered == {"bob@example.org": 1}


def test_a_later_batch_is_sent_though_an_earlier_one_found_no_room() -> None:
    with FaultServer() as server, ExitStack() as holding:
        options = {"pool": {"max_size": 1, "timeout": 0.01}}
        holding.enter_context(pool.lease(relay(server, **options), seconds=5))

        def messages() -> Iterator[EmailMessage]:
            yield from mails(25)  # one batch
            holding.close()
            yield from mails(5)

        with pytest.raises(PoolTimeout) as raised:
            backend(server, **options).send_messages(messages())
        ends = [each.outcome for each in raised.value.results]
        assert ends == [NOT_SENT] * 25 + [SENT] * 5


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("phase", "third", "pipelining"),
    [
        ("mail", NOT_SENT, False),
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
        assert [result(each).outcome for each in messages] == [SENT, SENT, third, NOT_SENT, NOT_SENT]  # fmt: skip
        assert [each[0] for each in heard.sent] == messages[:2]
        assert [each[0] for each in heard.failed] == messages[2:]
        assert server.delivered == to(1, 2)
        assert server.wait_for(lambda: server.open_connections == 0)


def test_messages_for_several_are_not_unconfirmed_together() -> None:
    messages = [mail(f"{n}a@x.test", f"{n}b@x.test") for n in range(1, 6)]
    script = [On("rcpt", match="2b@", times=1, do=stall(SHORT, drop()))]
    with FaultServer(script, features=CHUNKING, idempotency=True) as server:
        outcomes, error, _ = send(server, messages, chunking=True)
        # Its chunk was on the way, the ones behind it were not.
        assert outcomes == all_but(2, UNKNOWN, 5)
        assert isinstance(error, DeliveryUnknown)
        assert set(server.delivered) == {f"{n}{k}@x.test" for n in (1, 3, 4, 5) for k in "ab"}  # fmt: skip
        assert set(server.delivered.values()) == {1}


# -- many at once ------------------------------------------------------------------------------


def test_messages_for_each_recipient_end_by_themselves() -> None:
    message = mail("1@x.test", "2@x.test", "3@x.test")
    message.merge_metadata = {"2@x.test": {"n": 2}}  # type: ignore[attr-defined]
    script = [On("rcpt", match="2@", do=reply(550)), On("dot", message=3, times=1, do=drop(deliver=True))]  # fmt: skip
    with FaultServer(script, idempotency=True) as server:
        assert backend(server).send_messages([message]) == 1
        assert server.delivered == {"1@x.test": 1, "3@x.test": 1}
        found = {who: each.status for who, each in status(message).recipients.items()}
        assert found == {"1@x.test": "queued", "2@x.test": "rejected", "3@x.test": "queued"}  # fmt: skip
        assert len({each.key for each in server.deliveries}) == 2


def test_losses_at_random_places_of_a_long_list_lose_and_double_nothing() -> None:
    places = {3: "mail", 11: "rcpt", 12: "data", 30: "dot", 31: "dot", 49: "mail"}
    with FaultServer(idempotency=True) as server:
        for number, phase in places.items():
            who = f"<{number}@"
            what: Any = phase
            if phase in ("mail", "data", "dot"):
                server.script.append(On(what, message=number, times=1, do=drop(deliver=number == 31)))  # fmt: skip
            else:
                server.script.append(On(what, match=who, times=1, do=drop()))
        outcomes, error, _ = send(server, mails(60), pool={"max_messages": 20})
        assert outcomes == [SENT] * 60
        assert error is None
        assert server.delivered == to(*range(1, 61))
