"""From a host name to a session: addresses, greeting, EHLO, and how each step fails."""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import AuthenticationFailed, ConnectFailed, TLSFailed
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState, Session, probe
from tests.deadends import blackhole, refused_port
from tests.faults import once_spoken_to
from tests.faultserver import (
    FEATURES,
    FaultServer,
    On,
    drop,
    endless,
    hang,
    raw,
    reply,
    stall,
    trickle,
)
from tests.sending import SHORT, cases, interruptible, relay, session
from tests.smtp.helpers import (
    connect_with,
    failure,
    soon,
    verbs_before_login,
)

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.smtp.dns import AddressInfo
    from tests.faults import Action


# -- DNS and TCP -----------------------------------------------------------------------


def test_an_unknown_host_is_named() -> None:
    with FaultServer() as server:
        error = failure(server, host="nope.invalid", seconds=20)
    assert isinstance(error, ConnectFailed)
    assert f"DNS on nope.invalid:{server.port} failed" in str(error)
    assert "check the option `host`" in str(error)
    assert (error.step, error.phase) == ("DNS", Phase.CONNECT)


def test_a_port_that_refuses_connections_is_named() -> None:
    with FaultServer() as server, refused_port() as port:
        error = failure(server, port=port)
    assert isinstance(error, ConnectFailed)
    assert error.transient
    assert not error.timed_out
    assert f"TCP on 127.0.0.1:{port} failed" in str(error)
    assert "refused" in str(error)
    assert "--scan-ports" in str(error)


def test_a_host_that_does_not_answer_is_given_up_after_the_timeout() -> None:
    with FaultServer() as server, blackhole() as port:
        began = time.monotonic()
        error = failure(server, port=port, timeout=SHORT)
    assert SHORT * 0.9 < time.monotonic() - began < 4
    assert isinstance(error, ConnectFailed)
    assert error.timed_out
    assert error.summary == f"TCP on 127.0.0.1:{port} failed: timed out"


def test_an_interrupt_while_connecting_leaves_no_socket() -> None:
    with FaultServer() as server, blackhole() as port, interruptible() as strike:
        config = relay(server, port=port, timeout=30)
        timer = threading.Timer(0.1, strike)
        timer.start()
        # A socket left open would be a ResourceWarning, which is an error here.
        with pytest.raises(KeyboardInterrupt):
            connect_with(config, seconds=30)
        timer.join()


def test_commands_are_not_held_back_by_nagles_algorithm() -> None:
    with FaultServer() as server, session(server) as held:
        sock = held.stream.socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- a host with several addresses -----------------------------------------------------


def connect_in_turn(
    config: RelayConfig, *ports: int, state: RelayState | None = None, **others: Any
) -> Session:
    """Connect to a host whose addresses are these ports of 127.0.0.1."""

    def resolve(host: str, port: int, until: float) -> list[AddressInfo]:
        assert (host, port) == (config.endpoint.host, config.endpoint.port)
        assert until > time.monotonic()
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, ("127.0.0.1", each)) for each in ports]

    return connect_with(config, state=state, resolve=resolve, **others)


FAULTS = cases(
    silent=On("banner", do=hang()),
    busy=On("banner", do=reply(421, "4.3.2 too busy", close=True)),
    closed=On("banner", do=reply(554, "5.3.2 closed")),
    gone=On("banner", do=drop()),
    gone_before_tls=On("tls", do=drop()),
    gone_in_tls=On("tls", do=once_spoken_to(drop())),
    busy_in_clear=On("tls", do=reply(421, "4.3.2 too busy", close=True)),
    junk_in_tls=On("tls", do=once_spoken_to(raw(b"junk\r\n" * 9))),
    refusing_ehlo=On("ehlo", do=reply(421, "4.3.2 overloaded", close=True)),
    login_later=On("auth", do=reply(454, "4.7.0 try later")),
    gone_at_login=On("auth", do=drop()),
)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_next_address_is_used_when_the_first_one_fails(fault: On) -> None:
    state = RelayState()
    with FaultServer([fault]) as broken, FaultServer() as well:
        config = relay(well, timeout=SHORT)
        for _ in range(2):
            connect_in_turn(config, broken.port, well.port, state=state).close()
        # The second connection began with the address that had worked.
        assert (broken.connections, well.connections) == (1, 2)
        assert broken.wait_for(lambda: broken.open_connections == 0)


def test_an_address_without_a_route_costs_its_time_once() -> None:
    state = RelayState()
    with blackhole() as dead, FaultServer() as well:
        config = relay(well, timeout=4 * SHORT)
        began = time.monotonic()
        connect_in_turn(config, dead, well.port, state=state).close()
        # Half of the timeout, so that the other address has its share.
        assert 2 * SHORT * 0.9 < time.monotonic() - began < 4 * SHORT
        began = time.monotonic()
        connect_in_turn(config, dead, well.port, state=state).close()
        assert time.monotonic() - began < 2 * SHORT


def test_an_address_of_a_family_that_this_machine_lacks_is_passed_over() -> None:
    def resolve(_: str, port: int, __: float) -> list[AddressInfo]:
        kind = (socket.SOCK_STREAM, 0, "")
        return [(9999, *kind, ("x", 1)), (socket.AF_INET, *kind, ("127.0.0.1", port))]

    with FaultServer() as server:
        connect_with(relay(server), resolve=resolve).close()
        assert server.connections == 1


def test_the_other_address_is_used_when_the_good_one_dies() -> None:
    state = RelayState()
    with FaultServer() as first, FaultServer() as second:
        config = relay(first)
        connect_in_turn(config, first.port, second.port, state=state).close()
        first.close_door()
        connect_in_turn(config, first.port, second.port, state=state).close()
        connect_in_turn(config, first.port, second.port, state=state).close()
        assert (first.connections, second.connections) == (1, 2)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "last"])
def test_the_error_is_what_a_relay_replied(order: tuple[int, int]) -> None:
    busy = On("banner", do=reply(421, "4.3.2 too busy"))
    with FaultServer([busy]) as server, refused_port() as refused:
        ports = [(server.port, refused)[number] for number in order]
        with pytest.raises(ConnectFailed) as raised:
            connect_in_turn(relay(server), *ports)
    assert raised.value.smtp_code == 421
    assert raised.value.smtp_error == b"4.3.2 too busy"


@pytest.mark.parametrize(
    ("code", "connections"), [(421, [1, 1, 1]), (500, [1, 1, 0]), (554, [1, 1, 0])]
)
def test_two_permanent_refusals_are_enough(code: int, connections: list[int]) -> None:
    refused = On("banner", do=reply(code, "not now"))
    with (
        FaultServer([refused]) as one,
        FaultServer([refused]) as two,
        FaultServer([refused]) as three,
    ):
        servers = [one, two, three]
        with pytest.raises(ConnectFailed) as raised:
            connect_in_turn(relay(one), *[each.port for each in servers])
        assert [each.connections for each in servers] == connections
    assert raised.value.smtp_code == code


def test_no_address_is_tried_when_time_is_over() -> None:
    with FaultServer([On("banner", do=hang())]) as broken, FaultServer() as well:
        with pytest.raises(ConnectFailed, match="timed out"):
            connect_in_turn(relay(well), broken.port, well.port, seconds=SHORT)
        assert (broken.connections, well.connections) == (1, 0)


@pytest.mark.parametrize(
    ("server_options", "error"),
    [
        ({"cert": "wrong_host"}, TLSFailed),
        ({"script": [On("auth", do=reply(535, "5.7.8 no"))]}, AuthenticationFailed),
        ({"auth": ()}, AuthenticationFailed),
    ],
    ids=["certificate", "token", "no login"],
)
def test_no_other_address_cures_a_refused_login_or_a_wrong_certificate(
    server_options: dict[str, Any], error: type[Exception]
) -> None:
    with FaultServer(**server_options) as first, FaultServer() as second:
        with pytest.raises(error):
            connect_in_turn(relay(first), first.port, second.port)
        assert (first.connections, second.connections) == (1, 0)


# -- greeting and EHLO -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "code", "limits_connections"),
    [
        ("banner", 421, True),
        ("banner", 450, True),
        ("banner", 500, False),
        ("banner", 554, False),
        ("ehlo", 421, True),
        ("ehlo", 451, False),
        ("auth", 421, True),
        ("auth", 451, False),
    ],
)
def test_a_refusal_before_the_login_is_done_may_be_a_limit_of_connections(
    at: Any, code: int, limits_connections: Any
) -> None:
    with FaultServer([On(at, do=reply(code, "5.7.1 not you"))]) as server:
        error = failure(server)
        assert server.connections == 1
    assert isinstance(error, ConnectFailed)
    # The refusal of a whole site may end, so a queue keeps the mail.
    assert (error.smtp_code, error.transient) == (code, True)
    assert error.step == ("greeting" if at == "banner" else at.upper())
    assert error.phase is (Phase.AUTH if at == "auth" else Phase.CONNECT)
    assert error.limits_connections is limits_connections


def at(phase: Any, do: Action) -> list[On]:
    return [On(phase, do=do)]


LATE = "raise the option `timeout`"
AFTER_STARTTLS = [On("ehlo", times=1, do=reply(250, "relay\nSTARTTLS"))]


@pytest.mark.parametrize(
    ("tls", "script", "kind", "code", "shown"),
    [
        ("implicit", at("banner", hang()), ConnectFailed, 0, LATE),
        ("implicit", at("banner", reply(250)), ConnectFailed, 250, "greeting on"),
        (
            "implicit",
            at("banner", raw(b"HTTP/1.1\r\n")),
            ConnectFailed,
            0,
            "not an SMTP",
        ),
        (
            "implicit",
            at("banner", raw(b"220 x", close=True)),
            ConnectFailed,
            0,
            "closed",
        ),
        (
            "implicit",
            at("banner", endless(b"220-x\r\n")),
            ConnectFailed,
            0,
            "100 lines",
        ),
        ("implicit", at("banner", endless(b"x")), ConnectFailed, 0, "greeting on"),
        ("implicit", at("banner", trickle(b"x" * 99, 0.05)), ConnectFailed, 0, LATE),
        ("implicit", at("ehlo", hang()), ConnectFailed, 0, "EHLO on"),
        ("implicit", at("ehlo", drop()), ConnectFailed, 0, "EHLO on"),
        ("implicit", at("ehlo", reply(451)), ConnectFailed, 451, "EHLO on"),
        ("implicit", at("ehlo", reply(502)), ConnectFailed, 502, "EHLO on"),
        ("starttls", at("ehlo", reply(499)), ConnectFailed, 499, "EHLO on"),
        ("starttls", at("ehlo", reply(500)), TLSFailed, 0, "EHLO was refused: 500"),
        ("starttls", at("ehlo", reply(502)), TLSFailed, 0, "EHLO was refused: 502"),
        (
            "starttls",
            AFTER_STARTTLS + at("ehlo", reply(502)),
            ConnectFailed,
            502,
            "EHLO on",
        ),
        ("implicit", at("auth", hang()), ConnectFailed, 0, "AUTH on"),
    ],
)
def test_a_step_before_the_login_is_done_fails_with_its_reason(
    tls: str,
    script: list[On],
    kind: type[ConnectFailed | TLSFailed],
    code: int,
    shown: str,
) -> None:
    with FaultServer(script, tls=tls) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
        # HELO is not tried.
        assert b"HELO" not in server.received[1]
    assert isinstance(error, kind)
    assert (error.smtp_code, error.transient) == (code, True)
    assert shown in str(error)
    assert error.step in str(error)
    assert (LATE in str(error)) is (error.step == "greeting" and not code)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"local_hostname": "box.example.org"}, rb"box\.example\.org"),
        ({}, rb"\[127\.0\.0\.1\]|.+\..+"),
    ],
)
def test_the_name_at_ehlo_is_the_option_or_that_of_the_machine(
    options: dict[str, str], name: bytes
) -> None:
    with FaultServer() as server, session(server, **options):
        assert re.fullmatch(b"EHLO (" + name + b")", server.commands[0][1])


def test_features_are_read_in_any_letter_case() -> None:
    ehlo = reply(250, "relay\npipelining\nSize 1000\n\nauth login PLAIN")
    with FaultServer([On("ehlo", do=ehlo)]) as server, session(server) as held:
        assert held.features["SIZE"] == "1000"
        assert held.features["PIPELINING"] == ""
        assert server.logins[0].mechanism == "PLAIN"


# -- the whole -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "steps"),
    [
        ("implicit", ["DNS", "TCP", "TLS", "EHLO", "AUTH"]),
        ("starttls", ["DNS", "TCP", "EHLO", "TLS", "EHLO", "AUTH"]),
        (None, ["DNS", "TCP", "EHLO", "AUTH"]),
    ],
)
def test_each_step_is_traced(tls: str | None, steps: list[str]) -> None:
    traced: list[tuple[str, str]] = []
    with FaultServer(tls=tls) as server:
        connect_with(relay(server), trace=lambda *step: traced.append(step)).close()
        assert [step for step, _ in traced] == steps
        assert traced[0] == ("DNS", "127.0.0.1")
        assert traced[1] == ("TCP", f"127.0.0.1:{server.port}")
        assert traced[-1] == ("AUTH", "PLAIN")
        offered = {each.split()[0] for each in FEATURES}
        assert offered <= set(traced[-2][1].split())
        if tls:
            shown = dict(traced)["TLS"]
            assert shown.startswith("TLSv1.")
            assert "certificate valid until" in shown


def test_a_probe_does_not_log_in() -> None:
    with FaultServer() as server:
        config = relay(server)
        probe(config.endpoint, RelayState(), until=soon(), timeout=config.timeout)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert verbs_before_login(server) == {"EHLO"}
        server.close_door()
        with pytest.raises(ConnectFailed):
            probe(config.endpoint, RelayState(), until=soon(), timeout=config.timeout)


def test_each_step_may_take_almost_as_long_as_the_timeout() -> None:
    slow = [On("banner", do=stall(0.8)), On("ehlo", do=stall(0.8))]
    with FaultServer(slow) as server:
        connect_with(relay(server, timeout=1.5)).close()
        assert server.connections == 1
