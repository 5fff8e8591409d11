"""Messages over connections that fail: what ends, what is tried again, and when."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import PoolConfig
from django_lettermint.delivery import (
    Delivery,
    Submission,
    build_error,
    build_result,
    policy,
    submissions,
)
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    DeliveryUnknown,
    LettermintError,
    PoolTimeout,
    TLSFailed,
)
from django_lettermint.pool import ConnectionPool
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import RelayState, Session, connect
from tests.deadends import refused_port
from tests.faultserver import (
    FEATURES,
    Answer,
    FaultServer,
    On,
    drop,
    hang,
    normal,
    reply,
    stall,
)
from tests.sending import (
    SHORT,
    backend,
    cases,
    envelope,
    interruptible,
    listening,
    mail,
    mails,
    relay,
    result,
    spoken,
    strike_and_wait,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.mail import EmailMessage

    from django_lettermint.conf import RelayConfig
    from django_lettermint.testing import Relay
    from tests.faults import Action
    from tests.faults import Phase as Step

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN
CHUNKING = (*FEATURES, "CHUNKING")
GOING = reply(421, "4.7.0 Try again later, closing connection", close=True)


def messages(count: int, config: RelayConfig) -> list[list[Submission]]:
    return [
        submissions([envelope(f"{n}@x.test", idempotency_key=f"key {n}")], config)
        for n in range(1, count + 1)
    ]


def outcomes(sent: list[list[Submission]]) -> list[Outcome]:
    return [each.outcome for [each] in sent if each.done]


def deliver(sent: list[list[Submission]], config: RelayConfig, **more: Any) -> None:
    more = {"sleep": lambda seconds: None, **more}
    Delivery(config, pool.get_pool(config.endpoint), **more).deliver(sent)


def delivered(
    server: FaultServer, count: int = 1, *, patience: float = 60, **options: Any
) -> tuple[list[Outcome], list[float]]:
    """Deliver so many messages; return the outcomes, and the pauses in between."""
    pauses: list[float] = []
    sent = messages(count, config := relay(server, **options))
    deliver(sent, config, patience=patience, sleep=pauses.append)
    return outcomes(sent), pauses


# -- A list ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    cases(
        pipelined={}, one_by_one={"pipelining": False}, in_windows={"chunking": True}
    ),
)
def test_a_list_takes_one_connection_and_arrives_in_order(options: Any) -> None:
    with FaultServer(features=CHUNKING, idempotency=True) as server:
        assert delivered(server, 60, **options) == ([SENT] * 60, [])
        assert [each.recipients[0] for each in server.deliveries] == [
            f"{number}@x.test" for number in range(1, 61)
        ]
        assert server.connections == 1
        assert server.violations == []


@pytest.mark.parametrize(
    ("features", "options"),
    [(FEATURES, {"pool": {"max_messages": 2}}), ((*FEATURES, "LIMITS MAILMAX=2"), {})],
    ids=["the option", "the relay"],
)
def test_a_connection_carries_no_more_messages_than_it_may(
    features: Any, options: dict[str, Any]
) -> None:
    with FaultServer(features=features) as server:
        for count in (1, 5):
            delivered(server, count, **options)
        assert [each.connection for each in server.deliveries] == [1, 1, 2, 2, 3, 3]


def test_recipients_that_are_too_many_at_once_get_a_transaction_of_their_own() -> None:
    too_many = On("rcpt", message=1, match="[23]@", do=reply(452, "4.5.3 too many"))
    with FaultServer([too_many]) as server:
        config = relay(server)
        sent = submissions([envelope("1@x.test", "2@x.test", "3@x.test")], config)
        deliver([sent], config)
        assert [each.recipients for each in server.deliveries] == [
            ("1@x.test",),
            ("2@x.test", "3@x.test"),
        ]
    assert [each.outcome for each in sent] == [SENT] * 2


def breaking(*numbers: int) -> list[On]:
    """Return rules by which these messages break every connection."""
    return [On("rcpt", match=f"^TO:<{each}@", do=drop()) for each in numbers]


def test_a_message_that_breaks_every_connection_stops_none_of_the_others() -> None:
    with FaultServer(breaking(2, 4)) as server:
        found, _ = delivered(server, 6, retries=2)
        assert found == [SENT, NOT_SENT, SENT, NOT_SENT, SENT, SENT]
        # Once on a connection that had served, then as often as a connection may fail.
        assert Counter(spoken(server))["RCPT"] >= 4 + 2 * 4


def test_a_relay_that_hangs_up_on_two_messages_in_a_row_counts_as_gone() -> None:
    with FaultServer(breaking(2, 3)) as server:
        sent = messages(6, config := relay(server, retries=1))
        deliver(sent, config)
        assert outcomes(sent) == [SENT] + [NOT_SENT] * 5
        # One that had served, then two for each of the messages.
        assert server.connections == 5
        assert "hung up on one message after the other" in str(sent[-1][0].error)


@pytest.mark.parametrize(
    ("rule", "kind", "connections"),
    [
        (On("auth", do=reply(535)), AuthenticationFailed, 1),
        (On("banner", do=reply(554)), ConnectFailed, 1),
        (On("banner", do=drop()), ConnectFailed, 3),
    ],
    ids=["login", "for good", "for now"],
)
def test_what_any_message_would_meet_fails_the_rest_at_once(
    rule: On, kind: type[LettermintError], connections: int
) -> None:
    sent = mails(60)
    with FaultServer([rule]) as server:
        sender = backend(server, batch_connections=1, retries=2)
        with listening() as heard, pytest.raises(kind) as raised:
            sender.send_messages(sent)
        assert server.connections == connections
    # Each has one signal, and its own error with its own result.
    assert [each[0] for each in heard.failed] == sent
    assert raised.value is heard.failed[0][2]
    errors: list[Any] = [error for _, _, error in heard.failed]
    assert {type(error) for error in errors} == {kind}
    assert len({id(error) for error in errors}) == 60
    assert [error.result for error in errors] == [result(each) for each in sent]
    assert {result(each).outcome for each in sent} == {NOT_SENT}


def test_a_batch_without_room_in_the_pool_fails_and_a_later_one_is_sent() -> None:
    with FaultServer() as server, ExitStack() as holding:
        options: Any = {"pool": {"max_size": 1, "timeout": 0.01}}
        holding.enter_context(pool.lease(relay(server, **options), seconds=5))

        def two_batches() -> Iterator[EmailMessage]:
            yield from mails(25)
            holding.close()
            yield from mails(5)

        with pytest.raises(PoolTimeout) as raised:
            backend(server, **options).send_messages(two_batches())
        ends = [(each.outcome, each.phase) for each in raised.value.results]
        assert ends == [(NOT_SENT, Phase.POOL)] * 25 + [(SENT, Phase.DONE)] * 5


# -- Lost connections ------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["banner", "auth", "mail", "data"])
def test_the_pauses_between_new_connections_grow(phase: Any) -> None:
    with FaultServer([On(phase, do=GOING)]) as server:
        found, waited = delivered(server, retries=5)
        assert found == [NOT_SENT]
        assert len(waited) == 5
        assert waited == sorted(waited)
        assert waited[-1] > 8 * waited[0]
        assert server.connections == 6


@pytest.mark.parametrize(
    ("counts", "do"),
    [
        pytest.param((1, 1), drop(), id="closed while idle"),
        pytest.param((1, 1), GOING, id="421 after idling"),
        pytest.param(
            (1, 1), reply(450, "4.4.2 idle too long"), id="x.4.2 after idling"
        ),
        pytest.param((2,), drop(), id="closed within a list"),
    ],
)
def test_a_used_connection_that_is_lost_is_replaced_without_a_pause(
    counts: tuple[int, ...], do: Action
) -> None:
    with FaultServer([On("mail", message=2, do=do)]) as server:
        for count in counts:
            ends = delivered(server, count, retries=0, pipelining=False)
            assert ends == ([SENT] * count, [])
        assert server.connections == 2
        [stats] = pool.get_stats()
        assert (stats["retries"], stats["closed"]) == (1, {"error": 1})


def test_idle_connections_that_are_lost_together_cost_one_try() -> None:
    with FaultServer() as server:
        config = relay(server, retries=0, pool={"max_size": 3})
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(pool.lease(config, seconds=5))
        # There is no sign of it until they are used.
        server.script += [On("mail", connection=n, do=drop()) for n in (1, 2, 3)]
        deliver(sent := messages(1, config), config)
        assert outcomes(sent) == [SENT]
        assert server.connections == 4
        assert spoken(server).count("MAIL") == 2


@pytest.mark.parametrize("count", [1, 50])
def test_code_and_text_of_a_relay_that_closes_are_in_every_result(count: int) -> None:
    with FaultServer([On("mail", do=GOING)]) as server:
        sent = messages(count, config := relay(server, retries=1))
        deliver(sent, config)
        assert server.connections == 2
    for each in sent:
        found, error = build_result(each), build_error(each)
        assert (found.outcome, found.code) == (NOT_SENT, 421)
        assert "Try again later" in found.text
        assert isinstance(error, ConnectionLost)
        assert error.smtp_code == 421
        assert b"Try again later" in error.smtp_error


def test_quick_retries_pause_though_the_patience_is_over() -> None:
    with FaultServer([On("mail", do=drop())]) as server:
        found, pauses = delivered(server, patience=0, retries=2)
        assert found == [NOT_SENT]
        assert server.connections == 3
    first, second = pauses
    assert 0 < first < second


@pytest.mark.parametrize(("patience", "deadline"), [(0.5, 60), (60, 5)])
def test_no_pause_is_longer_than_the_patience_and_the_deadline_that_are_left(
    patience: float, deadline: float
) -> None:
    with FaultServer([On("mail", do=GOING)]) as server:
        _, pauses = delivered(server, patience=patience, retries=9, deadline=deadline)
    assert 0 < max(pauses) <= min(patience, deadline)


def test_patience_counts_from_the_first_failure() -> None:
    with FaultServer([On("mail", do=stall(0.06, drop()))]) as server:
        assert delivered(server, patience=0.1, retries=5)[0] == [NOT_SENT]
        assert server.connections == 3


def test_a_list_has_less_patience_where_a_message_may_break_the_connections() -> None:
    slow = On("mail", message=2, do=stall(policy.PATIENCE + 0.05, drop()))
    with FaultServer([slow, On("mail", do=drop())]) as server:
        assert delivered(server, retries=3)[0] == [NOT_SENT]
        assert server.connections == 3


def test_a_relay_that_closes_each_new_connection_is_not_dialled_at_full_speed() -> None:
    with FaultServer([On("dot", do=reply(421, close=True))]) as server:
        found, pauses = delivered(server, 3)
        assert found == [NOT_SENT] * 3
        assert server.connections == 3
    assert len(pauses) == 2
    assert all(0 < pause <= policy.PAUSE for pause in pauses)


# -- Unconfirmed messages --------------------------------------------------------------


@pytest.mark.parametrize("taken", [False, True])
def test_an_unconfirmed_message_is_repeated_byte_for_byte_under_its_key(
    *, taken: bool
) -> None:
    script = [On("dot", times=1, do=drop(deliver=taken))]
    with FaultServer(script, idempotency=True) as server:
        message = mail()
        assert backend(server).send_messages([message]) == 1
        assert server.delivered == {"bob@example.org": 1}
        assert server.replays == taken
        assert server.deliveries[0].key == result(message).idempotency_key
        assert server.violations == []
        first, second = (
            octets.partition(b"MAIL FROM")[2] for octets in server.received.values()
        )
        assert first == second


@pytest.mark.parametrize("idempotency", [False, True])
def test_the_callers_key_is_written_but_only_relied_on_with_idempotency(
    *, idempotency: bool
) -> None:
    script = [On("dot", times=2, do=drop(deliver=True))]
    message = mail()
    message.idempotency_key = "order-7"  # type: ignore[attr-defined] # as users do
    with FaultServer(script, idempotency=idempotency) as server:
        with suppress(DeliveryUnknown):
            backend(server, idempotency=idempotency).send_messages([message])
        assert result(message).outcome is (SENT if idempotency else UNKNOWN)
        assert [each.key for each in server.deliveries] == ["order-7"]
        assert server.connections == (3 if idempotency else 1)


@pytest.mark.parametrize(("step", "connections"), [("mail", 3), ("dot", 2)])
def test_a_repeat_refused_before_its_content_leaves_the_connection(
    step: Step, connections: int
) -> None:
    script = [
        On("dot", connection=1, do=drop()),
        On(step, connection=2, do=reply(450, "4.0.0 wait"), times=1),
    ]
    with FaultServer(script, idempotency=True) as server:
        sent = messages(1, config := relay(server))
        deliver(sent, config)
        assert outcomes(sent) == [SENT]
        assert server.connections == connections


# -- Failures that other messages would meet -------------------------------------------


@pytest.mark.parametrize(
    ("step", "code", "kind"),
    [
        ("auth", 535, AuthenticationFailed),
        ("banner", 500, ConnectFailed),
        ("starttls", 554, TLSFailed),
    ],
)
def test_a_failure_for_good_is_raised_though_another_connection_is_open(
    step: Step, code: int, kind: type[Exception]
) -> None:
    script = [On(step, connection=2, do=reply(code, "no"))]
    with FaultServer(script, tls="starttls") as server:
        config = relay(server, pool={"max_size": 2, "timeout": 0.1})
        sent = messages(1, config)
        with pool.lease(config, seconds=5):
            deliver(sent, config)
        assert isinstance(sent[0][0].error, kind)


def connect_failed(step: str) -> ConnectFailed:
    error = ConnectFailed("no")
    error.step = step
    return error


@pytest.mark.parametrize(
    ("met", "same", "other"),
    [
        (AuthenticationFailed("no"), NOT_SENT, SENT),
        (TLSFailed("no"), NOT_SENT, SENT),
        (connect_failed("AUTH"), NOT_SENT, SENT),
        (connect_failed("greeting"), NOT_SENT, NOT_SENT),
        (connect_failed("TCP"), NOT_SENT, NOT_SENT),
    ],
    ids=["login", "certificate", "login, for now", "greeting", "TCP"],
)
def test_an_error_of_one_list_ends_a_later_one_that_would_meet_it(
    met: Exception, same: Outcome, other: Outcome
) -> None:
    """The other one differs by its EHLO name, and has no connection."""

    def refuse(until: float, timeout: float) -> Session:
        raise met

    fatal: dict[object, Any] = {}
    with FaultServer() as server:
        config = relay(server, retries=0)
        connections = ConnectionPool(refuse, PoolConfig())
        Delivery(config, connections, fatal=fatal).deliver(messages(1, config))
        for expected, of_later in [
            (same, config),
            (other, relay(server, local_hostname="b.example")),
        ]:
            later = messages(2, of_later)
            deliver(later, of_later, fatal=dict(fatal))
            assert outcomes(later) == [expected] * 2
            errors = {each.error for [each] in later}
            assert errors == ({None} if expected is SENT else {met})


@pytest.mark.parametrize(
    ("step", "expected"), [("greeting", SENT), ("TCP", NOT_SENT), ("DNS", NOT_SENT)]
)
def test_a_relay_that_takes_no_new_connection_may_serve_an_open_one(
    step: str, expected: Outcome
) -> None:
    with FaultServer() as server:
        config = relay(server)
        endpoint = config.endpoint
        deliver(messages(1, config), config)
        address = endpoint.host, endpoint.port, endpoint.security
        sent = messages(1, config)
        deliver(sent, config, fatal={address: connect_failed(step)})
        assert outcomes(sent) == [expected]
        assert server.connections == 1


@pytest.mark.parametrize(
    ("met", "kind"),
    [
        (On("auth", connection=2, do=reply(535, "no")), AuthenticationFailed),
        (On("banner", connection=2, do=reply(554, "no")), ConnectFailed),
    ],
    ids=["login", "greeting"],
)
def test_an_error_does_not_end_later_lists_once_a_repeat_was_confirmed(
    met: On, kind: type[Exception]
) -> None:
    script = [On("dot", connection=1, do=drop()), met]
    with FaultServer(script, idempotency=True) as server:
        config = relay(server, pipelining=False)
        delivery = Delivery(config, pool.get_pool(config.endpoint))
        sent = messages(4, config)
        for each in (sent[:2], sent[2:]):
            delivery.deliver(each)
        assert outcomes(sent) == [SENT, NOT_SENT, SENT, SENT]
        assert isinstance(sent[1][0].error, kind)
        assert server.connections == 3


@pytest.mark.parametrize(
    "sick",
    cases(
        away_at_mail=On("mail", do=reply(421, "4.3.2 away", close=True)),
        closed_at_data=On("data", do=drop()),
        closed_after_login=On("auth", do=drop(after=True)),
    ),
)
def test_an_address_that_serves_no_message_leaves_it_to_the_next_one(sick: On) -> None:
    with FaultServer([sick]) as first, FaultServer(host="127.0.0.2") as second:
        config = relay(first)
        state = RelayState()

        def resolve(host: str, port: int, until: float) -> list[Any]:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 0, "", (each.host, each.port))
                for each in (first, second)
            ]

        def connect_to(until: float, timeout: float) -> Session:
            return connect(
                config.endpoint, state, until=until, timeout=timeout, resolve=resolve
            )

        sent = messages(3, config)
        connections = ConnectionPool(connect_to, config.endpoint.pool)
        Delivery(config, connections).deliver(sent)
        for held in connections.close():
            held.close()
        assert outcomes(sent) == [SENT] * 3
        assert (first.connections, second.connections) == (1, 1)
        assert set(second.delivered.values()) == {1}


# -- Deadlines -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ([On("banner", do=hang())], ConnectFailed, "greeting"),
        ([On("mail", message=2, do=hang())], ConnectionLost, "at MAIL"),
        (
            [
                On("mail", message=2, do=reply(530, "5.7.0 Authentication required")),
                On("banner", connection=2, do=hang()),
            ],
            ConnectFailed,
            "greeting",
        ),
    ],
    ids=["connecting", "sending", "connecting after a refusal"],
)
def test_the_error_after_a_deadline_says_what_took_so_long(
    script: list[On], kind: type[LettermintError], words: str
) -> None:
    # The greeting comes before TLS, for which a slow machine may need long.
    with FaultServer(script, tls="starttls") as server:
        if script[0].phase == "mail":
            delivered(server)
        config = relay(server, deadline=SHORT, timeout=60, retries=9)
        [sent] = messages(1, config)
        deliver([sent], config)
    error = build_error(sent)
    assert type(error) is kind
    assert words in str(error)
    assert error.transient
    assert build_result(sent).attempts == len(script)


def test_a_deadline_that_was_used_up_before_the_first_try_is_the_reason() -> None:
    with FaultServer() as server:
        late = messages(2, config := relay(server, deadline=9))
        late[0][0].deadline.started = time.monotonic() - 10
        deliver(late, config)
        assert outcomes(late) == [NOT_SENT, SENT]
        assert isinstance(late[0][0].error, ConnectionLost)
        assert "the deadline of 9 s has passed" in str(late[0][0].error)


def test_a_trouble_that_is_over_is_not_the_reason_why_a_later_deadline_passes() -> None:
    with FaultServer([On("banner", times=1, do=drop())]) as server:
        config = relay(server, deadline=9, pool={"max_messages": 1})
        sent = messages(2, config)
        sent[1][0].deadline.started = time.monotonic() - 10
        deliver(sent, config)
        assert outcomes(sent) == [SENT, NOT_SENT]
        assert "the deadline of 9 s has passed" in str(sent[1][0].error)


# -- Interrupts and stops --------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "where", "options", "third"),
    [
        (
            KeyboardInterrupt,
            {"phase": "banner", "connection": 2},
            {"pool": {"max_messages": 2}},
            NOT_SENT,
        ),
        (SystemExit, {"phase": "rcpt", "message": 3}, {"pipelining": False}, NOT_SENT),
        (SystemExit, {"phase": "dot", "message": 3}, {"pipelining": False}, UNKNOWN),
        (KeyboardInterrupt, {"phase": "dot", "message": 3}, {}, UNKNOWN),
    ],
    ids=["while connecting", "before the content", "at the end", "while pipelining"],
)
def test_an_interrupt_leaves_each_message_with_what_is_certain_and_one_signal(
    kind: type[BaseException],
    where: dict[str, Any],
    options: dict[str, Any],
    third: Outcome,
) -> None:
    sent = mails(5)
    with FaultServer() as server, interruptible(kind) as strike:
        server.script.append(On(**where, do=strike_and_wait(strike)))
        with listening() as heard, pytest.raises(kind):
            backend(server, **options).send_messages(sent)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.delivered == {"1@example.org": 1, "2@example.org": 1}
    ends = [result(each).outcome for each in sent]
    assert ends == [SENT, SENT, third, NOT_SENT, NOT_SENT]
    assert result(sent[2]).attempts == (where["phase"] != "banner")
    assert result(sent[4]).attempts == 0
    assert [each[0] for each in heard.sent] == sent[:2]
    assert [each[0] for each in heard.failed] == sent[2:]
    assert "interrupted" in str(heard.failed[0][2])


def test_an_interrupt_ends_the_messages_of_other_configurations_as_well() -> None:
    with FaultServer() as server, interruptible() as strike:
        server.script.append(On("mail", do=strike_and_wait(strike)))
        config, other = relay(server), relay(server, local_hostname="b.example")
        sent = [*messages(1, config), *messages(1, other)]
        delivery = Delivery(config, pool.get_pool(config.endpoint))
        with pytest.raises(KeyboardInterrupt):
            delivery.deliver_all(sent)
    assert outcomes(sent) == [NOT_SENT] * 2


def test_an_interrupt_while_a_repeat_waits_leaves_its_message_unknown() -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    # A slow machine may need no sleep before the first repeats.
    script = [On("dot", message=2, do=normal), On("dot", do=drop())]
    with FaultServer(script, idempotency=True) as server:
        sent = messages(2, config := relay(server, pipelining=False))
        with pytest.raises(KeyboardInterrupt):
            deliver(sent, config, sleep=interrupt)
        assert outcomes(sent) == [UNKNOWN, SENT]


@pytest.mark.parametrize(
    ("phase", "connections"), [(None, 0), ("banner", 1), ("auth", 1)]
)
def test_after_a_stop_nothing_begins(phase: Step | None, connections: int) -> None:
    """It comes before the delivery, in a pause, or while a connection is made."""
    stop = threading.Event()

    def stop_now(answer: Answer) -> Answer:
        stop.set()
        return drop()(answer) if phase == "banner" else answer

    with FaultServer() as server:
        if phase:
            server.script.append(On(phase, do=stop_now))
        else:
            stop.set()
        sent = messages(3, config := relay(server))
        deliver(sent, config, stop=stop)
        assert outcomes(sent) == [NOT_SENT] * 3
        assert server.connections == connections
        assert spoken(server) == []
        if phase == "auth":
            assert [each.attempts for [each] in sent] == [0] * 3
            assert pool.get_pool(config.endpoint).stats()["idle"] == 1


@pytest.mark.parametrize("chunking", cases(dot=False, bdat=True))
def test_a_stop_within_a_list_leaves_what_is_certain(*, chunking: bool) -> None:
    stop = threading.Event()

    def stop_now(answer: Answer) -> Answer:
        stop.set()
        return answer

    script = [On("dot", message=2, do=stop_now), On("dot", message=3, do=hang())]
    features = (*FEATURES, "CHUNKING")
    with FaultServer(script, features=features, idempotency=True) as server:
        sent = messages(5, config := relay(server, chunking=chunking))
        deliver(sent, config, stop=stop)
        found = outcomes(sent)
        if chunking:
            # How much of the window was confirmed by then depends on the moment.
            assert set(found[:2]) <= {SENT, UNKNOWN}
            assert found[2:] == [UNKNOWN] * 3
        else:
            assert found == [SENT] * 2 + [NOT_SENT] * 3
        assert server.wait_for(lambda: len(server.deliveries) == 2)
        assert server.wait_for(lambda: server.open_connections == 0)


# -- The log ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (On("banner", times=1, do=reply(421, "4.7.0 a@x.test")), "connect (421)"),
        (On("auth", times=1, do=reply(454, "4.7.0 a@x.test")), "auth (454)"),
        (On("mail", times=1, do=reply(421, "4.3.2 a@x.test")), "mail (421)"),
        (On("rcpt", times=1, do=drop()), "rcpt (ConnectionResetError)"),
    ],
    ids=["banner", "auth", "mail", "rcpt"],
)
def test_a_connection_that_is_tried_again_leaves_a_line_without_addresses(
    rule: On, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "django_lettermint")
    with FaultServer([rule]) as server:
        deliver(messages(1, config := relay(server)), config)
    retried, details, *_ = [each for each in caplog.records if "failed" in each.msg]
    assert retried.levelname == "INFO"
    assert retried.getMessage() == (
        f"127.0.0.1:{server.port} failed at {words}: "
        "trying again on a new connection (retry)"
    )
    assert details.levelname == "DEBUG"
    assert ("a@x.test" in details.getMessage()) is ("rcpt" not in words)


# -- A restart of the relay, in real time ----------------------------------------------


@pytest.mark.slow
def test_a_restart_of_three_seconds_within_a_list_loses_and_doubles_nothing(
    relay: Relay,
) -> None:
    sent = mails(300)
    restart = threading.Timer(3.0, relay.start)

    def stopping() -> Iterator[EmailMessage]:
        for number, each in enumerate(sent):
            if number == 200:
                relay.stop()
                restart.start()
            yield each

    with suppress(LettermintError):
        EmailBackend(**relay.options(idempotency=False)).send_messages(stopping())
    restart.join()
    outcomes = Counter(result(each).outcome for each in sent)
    assert outcomes[Outcome.NOT_SENT] == 0
    assert outcomes[Outcome.UNKNOWN] <= 5  # one on each connection
    copies = Counter(each.recipients[0] for each in relay.messages)
    assert set(copies.values()) == {1}
    assert len(copies) >= outcomes[Outcome.SENT]


@pytest.mark.slow
def test_a_single_mail_outlives_a_restart_of_one_second(relay: Relay) -> None:
    sender = EmailBackend(**relay.options())
    relay.stop()
    restart = threading.Timer(1.0, relay.start)
    restart.start()
    assert sender.send_messages([mail()]) == 1
    restart.join()


@pytest.mark.slow
def test_a_relay_that_refuses_connections_costs_a_single_mail_three_seconds() -> None:
    with refused_port() as port:
        sender = EmailBackend(
            api_token="t", host="127.0.0.1", port=port, security="tls"
        )
        began = time.monotonic()
        with pytest.raises(ConnectFailed):
            sender.send_messages([mail()])
        assert time.monotonic() - began < 3
