"""A list of messages: each ends by itself, and nobody gets any of them twice."""

from __future__ import annotations

import threading
import time
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
    TLSFailed,
)
from django_lettermint.results import Outcome, Phase
from tests.faultserver import (
    FEATURES,
    Answer,
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

    from tests.faults import Action

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN
CHUNKING = (*FEATURES, "CHUNKING")
#: DATA with riders, DATA without, and BDAT in windows.
WAYS = cases(riders={}, one_by_one={"pipelining": False}, chunks={"chunking": True})


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
        outcomes, error, _ = send(server, mails(60), **options)
        assert outcomes == [SENT] * 60
        assert error is None
        assert [each.recipients[0] for each in server.deliveries] == [*to(*range(1, 61))]  # fmt: skip
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("code", [451, 550])
@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_refused_message_stops_none_of_the_others(
    number: int, phase: Any, code: int, options: Any
) -> None:
    with FaultServer(
        [On(phase, message=number, do=reply(code))], features=CHUNKING
    ) as server:
        outcomes, error, _ = send(server, mails(5), **options)
        if phase == "data" and options.get("chunking"):
            assert error is None
            return
        assert outcomes == all_but(number, NOT_SENT, 5)
        assert error.smtp_code == code
        assert server.delivered == to(*{1, 2, 3, 4, 5} - {number})
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("do", [drop(), drop(rst=True), raw(b"?\r\n"), reply(421, close=True)], ids=["fin", "rst", "junk", "bye"])  # fmt: skip
@pytest.mark.parametrize("phase", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_connection_lost_before_the_end_of_a_message_loses_none(
    number: int, phase: Any, do: Action, options: Any
) -> None:
    with FaultServer(
        [On(phase, message=number, times=1, do=do)], features=CHUNKING, idempotency=True
    ) as server:
        outcomes, error, _ = send(server, mails(5), **options)
        assert outcomes == [SENT] * 5
        assert error is None
        assert server.delivered == to(1, 2, 3, 4, 5)
        lossless = phase == "data" and "chunking" in options
        assert server.connections == (1 if lossless else 2)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("do", [drop(), drop(deliver=True), raw(b"ok\r\n"), reply(354)], ids=["lost", "taken", "junk", "354"])  # fmt: skip
def test_an_unconfirmed_message_is_repeated_and_stops_none_of_the_others(
    number: int, do: Action, options: Any
) -> None:
    with FaultServer(
        [On("dot", message=number, times=1, do=do)], features=CHUNKING, idempotency=True
    ) as server:
        outcomes, error, _ = send(server, mails(5), **options)
        assert outcomes == [SENT] * 5
        assert error is None
        assert server.delivered == to(1, 2, 3, 4, 5)


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("number", [1, 3, 5])
def test_an_unconfirmed_message_without_idempotency_is_the_only_unknown(
    number: int, options: Any
) -> None:
    with FaultServer(
        [On("dot", message=number, times=1, do=drop(deliver=True))], features=CHUNKING
    ) as server:
        outcomes, error, _ = send(server, mails(5), idempotency=False, **options)
        # Messages that must not be repeated wait for each other.
        assert outcomes == all_but(number, UNKNOWN, 5)
        assert isinstance(error, DeliveryUnknown)
        assert server.delivered == to(1, 2, 3, 4, 5)
        assert server.connections == (2 if number < 5 else 1)


@pytest.mark.parametrize("options", WAYS)
def test_a_goodbye_at_the_end_of_a_message_refuses_that_one_only(options: Any) -> None:
    script = [On("dot", message=2, times=1, do=reply(421, "enough", close=True))]
    with FaultServer(script, features=CHUNKING, idempotency=True) as server:
        outcomes, error, _ = send(server, mails(5), **options)
        assert outcomes == all_but(2, NOT_SENT, 5)
        assert isinstance(error, MessageRefused)
        assert server.delivered == to(1, 3, 4, 5)


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


def test_a_message_without_recipients_or_cancelled_is_not_counted() -> None:
    messages = mails(3)
    messages[1].to = []
    with FaultServer() as server:
        assert backend(server).send_messages(messages) == 2
        assert server.delivered == to(1, 3)


# -- what fails all ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "kind", "connections"),
    [
        ([On("auth", do=reply(535))], AuthenticationFailed, 1),
        ([On("banner", do=reply(554))], ConnectFailed, 1),
        ([On("banner", do=drop())], ConnectFailed, 3),
        ([On("ehlo", do=reply(421, close=True))], ConnectFailed, 3),
        ([On("tls", do=raw(b"x" * 99))], TLSFailed, 1),
    ],
    ids=["auth", "site", "connect", "ehlo", "tls"],
)
def test_what_fails_one_message_alike_fails_the_rest_at_once(
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


def test_a_certificate_that_is_wrong_fails_all_without_a_login() -> None:
    with FaultServer(cert="wrong_host") as server:
        outcomes, error, _ = send(server, mails(30), retries=5)
        assert outcomes == [NOT_SENT] * 30
        assert isinstance(error, TLSFailed)
        assert server.connections == 1
        assert server.logins == []


def test_a_relay_that_goes_down_fails_the_rest_fast() -> None:
    with FaultServer() as server:

        def go_down(answer: Answer) -> Answer:
            server.close_door()
            return drop()(answer)

        server.script.append(On("mail", message=3, do=go_down))
        began = time.monotonic()
        outcomes, error, _ = send(server, mails(10), timeout=30)
        assert time.monotonic() - began < 10
        assert outcomes == [SENT] * 2 + [NOT_SENT] * 8
        assert isinstance(error, ConnectFailed)
        assert server.delivered == to(1, 2)


@pytest.mark.parametrize("phase", ["banner", "mail"])
def test_a_relay_that_falls_silent_fails_the_rest_within_a_few_timeouts(
    phase: Any,
) -> None:
    script = [On(phase, connection=1, message=3, do=hang())]
    script += [On(phase, connection=number, do=hang()) for number in range(2, 99)]
    if phase == "banner":
        script.append(On("mail", message=3, do=drop()))
    with FaultServer(script) as server:
        began = time.monotonic()
        outcomes, error, _ = send(server, mails(50), timeout=SHORT, retries=1)
        assert time.monotonic() - began < 12 * SHORT
        assert outcomes == [SENT] * 2 + [NOT_SENT] * 48
        assert isinstance(error, ConnectFailed | ConnectionLost)
        assert server.connections <= 5
        assert server.delivered == to(1, 2)


def test_a_message_that_kills_every_connection_stops_none_of_the_others() -> None:
    script = [On("rcpt", match="^TO:<2@", do=drop()), On("rcpt", match="^TO:<4@", do=drop())]  # fmt: skip
    with FaultServer(script) as server:
        outcomes, error, _ = send(server, mails(6), retries=2)
        assert outcomes == [SENT, NOT_SENT, SENT, NOT_SENT, SENT, SENT]
        assert isinstance(error, ConnectionLost)
        assert server.delivered == to(1, 3, 5, 6)
        # Once on a connection that had served, then as often as a connection may fail.
        assert Counter(spoken(server))["RCPT"] >= 4 + 2 * 4


def killers(*numbers: int) -> list[On]:
    """Return rules by which these messages cost every connection its life."""
    return [On("rcpt", match=f"^TO:<{each}@", do=drop()) for each in numbers]


def test_two_messages_in_a_row_that_kill_connections_stop_none_of_the_others() -> None:
    with FaultServer(killers(2, 3)) as server:
        outcomes, _, _ = send(server, mails(6), retries=1)
        assert outcomes == [SENT, NOT_SENT, NOT_SENT, SENT, SENT, SENT]
        assert server.delivered == to(1, 4, 5, 6)


def test_a_relay_that_kills_all_connections_is_taken_as_gone() -> None:
    with FaultServer(killers(2, 3, 4)) as server:
        outcomes, _, heard = send(server, mails(6), retries=1)
        assert outcomes == [SENT] + [NOT_SENT] * 5
        assert server.delivered == to(1)
        # One that had served, then two for the first message, one for each further one.
        assert server.connections == 5
        assert "hung up 4 times in a row: the message was not sent" in str(heard.failed[-1][2])  # fmt: skip


def test_a_pool_without_room_fails_each_run_after_its_timeout() -> None:
    release, reached = threading.Event(), threading.Event()
    with FaultServer([On("mail", message=1, do=gate(release, reached))]) as server:
        options = {"pool": {"max_size": 1, "timeout": SHORT}}
        holder = threading.Thread(
            target=backend(server, **options).send_messages, args=([mail()],)
        )
        holder.start()
        assert reached.wait(5)
        began = time.monotonic()
        outcomes, error, _ = send(server, mails(30), **options)
        assert time.monotonic() - began < 5
        assert outcomes == [NOT_SENT] * 30
        assert isinstance(error, PoolTimeout)
        assert {each.phase for each in error.results} == {Phase.POOL}
        release.set()
        holder.join(5)
        assert server.delivered == {"bob@example.org": 1}


def test_a_later_run_is_sent_though_an_earlier_one_found_no_room() -> None:
    with FaultServer() as server, ExitStack() as holding:
        options = {"pool": {"max_size": 1, "timeout": 0.01}}
        holding.enter_context(pool.lease(relay(server, **options), seconds=5))

        def messages() -> Iterator[EmailMessage]:
            yield from mails(25)  # one run
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


def test_an_interrupt_leaves_a_window_unknown() -> None:
    messages = mails(5)
    with FaultServer(features=CHUNKING) as server, interruptible() as strike:
        server.script.append(On("dot", message=3, do=strike_and_wait(strike)))
        with pytest.raises(KeyboardInterrupt):
            backend(server, chunking=True).send_messages(messages)
        outcomes = [result(each).outcome for each in messages]
        # How much of the window was confirmed, and written, by then is a matter of luck.
        assert set(outcomes[:2]) <= {SENT, UNKNOWN}
        assert outcomes[2] is UNKNOWN
        assert set(outcomes[3:]) <= {UNKNOWN, NOT_SENT}
        assert server.delivered == to(1, 2)


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
