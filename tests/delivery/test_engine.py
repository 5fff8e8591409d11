"""What limits a delivery: its deadline, its patience, a stop from another thread."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint import pool
from django_lettermint.conf import PoolConfig
from django_lettermint.delivery import Delivery, Submission, policy, submissions
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    ConnectionLost,
    TLSFailed,
)
from django_lettermint.pool import ConnectionPool
from django_lettermint.results import Outcome
from django_lettermint.smtp import RelayState, Session, connect
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
from tests.sending import cases, envelope, interruptible, relay, strike_and_wait

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from tests.faults import Action, Phase

SENT, NOT_SENT, UNKNOWN = Outcome.SENT, Outcome.NOT_SENT, Outcome.UNKNOWN


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


# -- Deadlines -------------------------------------------------------------------------


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


# -- Pauses and patience ---------------------------------------------------------------


def test_quick_retries_pause_though_the_patience_is_over() -> None:
    pauses: list[float] = []
    with FaultServer([On("mail", do=drop())]) as server:
        sent = messages(1, config := relay(server, retries=2))
        deliver(sent, config, patience=0, sleep=pauses.append)
        assert outcomes(sent) == [NOT_SENT]
        assert server.connections == 3
    first, second = pauses
    assert 0 < first < second


@pytest.mark.parametrize(("patience", "deadline"), [(0.5, 60), (60, 5)])
def test_no_pause_is_longer_than_the_patience_and_the_deadline_that_are_left(
    patience: float, deadline: float
) -> None:
    pauses: list[float] = []
    with FaultServer([On("mail", do=reply(421, "4.3.2 busy", close=True))]) as server:
        config = relay(server, retries=9, deadline=deadline)
        deliver(messages(1, config), config, patience=patience, sleep=pauses.append)
    assert 0 < max(pauses) <= min(patience, deadline)


def test_patience_counts_from_the_first_failure() -> None:
    with FaultServer([On("mail", do=stall(0.06, drop()))]) as server:
        sent = messages(1, config := relay(server, retries=5))
        deliver(sent, config, patience=0.1)
        assert outcomes(sent) == [NOT_SENT]
        assert server.connections == 3


@pytest.mark.parametrize(
    ("loss", "connections"),
    [
        pytest.param(drop(), 3, id="it may be the message"),
        pytest.param(reply(421, "4.3.2 soon", close=True), 4, id="it is the relay"),
    ],
)
def test_a_list_has_less_patience_where_a_message_may_break_the_connections(
    loss: Action, connections: int
) -> None:
    slow = On("mail", message=2, do=stall(policy.PATIENCE + 0.05, loss))
    with FaultServer([slow, On("mail", do=loss)]) as server:
        sent = messages(1, config := relay(server, retries=3))
        deliver(sent, config)
        assert outcomes(sent) == [NOT_SENT]
        assert server.connections == connections


def test_a_relay_that_closes_each_new_connection_is_not_dialled_at_full_speed() -> None:
    pauses: list[float] = []
    with FaultServer([On("dot", do=reply(421, close=True))]) as server:
        sent = messages(3, config := relay(server))
        deliver(sent, config, sleep=pauses.append)
        assert outcomes(sent) == [NOT_SENT] * 3
        assert server.connections == 3
    assert len(pauses) == 2
    assert all(0 < pause <= policy.PAUSE for pause in pauses)


def test_a_connection_lost_after_its_first_message_costs_no_retry() -> None:
    with FaultServer([On("mail", message=2, do=drop())]) as server:
        sent = messages(3, config := relay(server, retries=0, pipelining=False))
        deliver(sent, config)
        assert outcomes(sent) == [SENT] * 3
        assert server.connections == 2


def test_x_4_2_as_the_first_reply_after_idling_replaces_the_connection() -> None:
    script = [On("mail", message=2, do=reply(450, "4.4.2 idle too long"))]
    with FaultServer(script) as server:
        config = relay(server)
        for _ in range(2):
            sent = messages(1, config)
            deliver(sent, config)
            assert outcomes(sent) == [SENT]
        stats = pool.get_pool(config.endpoint).stats()
        assert (stats["retries"], stats["closed"]) == (1, {"error": 1})


@pytest.mark.parametrize(("step", "connections"), [("mail", 3), ("dot", 2)])
def test_a_repeat_refused_before_its_content_leaves_the_connection(
    step: Phase, connections: int
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
    step: Phase, code: int, kind: type[Exception]
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


# -- Interrupts and stops --------------------------------------------------------------


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


def test_an_interrupt_counts_no_try_of_a_message_that_was_not_begun() -> None:
    with interruptible(KeyboardInterrupt) as strike:
        script = [On("mail", message=2, do=strike_and_wait(strike))]
        with FaultServer(script) as server:
            sent = messages(3, config := relay(server, pipelining=False))
            with pytest.raises(KeyboardInterrupt):
                deliver(sent, config)
    assert outcomes(sent) == [SENT, NOT_SENT, NOT_SENT]
    assert [each.attempts for [each] in sent] == [1, 1, 0]


def test_after_a_stop_nothing_begins() -> None:
    stop = threading.Event()
    stop.set()
    with FaultServer() as server:
        sent = messages(3, config := relay(server))
        deliver(sent, config, stop=stop)
        assert outcomes(sent) == [NOT_SENT] * 3
        assert server.connections == 0


def test_a_stop_during_a_pause_lets_nothing_begin() -> None:
    stop = threading.Event()
    with FaultServer([On("banner", do=drop(), times=1)]) as server:
        sent = messages(3, config := relay(server))
        deliver(sent, config, stop=stop, sleep=lambda seconds: stop.set())
        assert outcomes(sent) == [NOT_SENT] * 3
        assert server.connections == 1


def test_a_stop_while_a_connection_is_awaited_lets_nothing_begin() -> None:
    stop = threading.Event()

    def accept_and_stop(answer: Answer) -> Answer:
        stop.set()
        return answer

    with FaultServer([On("auth", do=accept_and_stop)]) as server:
        sent = messages(3, config := relay(server))
        deliver(sent, config, stop=stop)
        assert outcomes(sent) == [NOT_SENT] * 3
        assert [each.attempts for [each] in sent] == [0] * 3
        assert pool.get_pool(config.endpoint).stats()["idle"] == 1
        assert not server.delivered


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
