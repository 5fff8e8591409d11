"""From a host name to a session: addresses, greeting, EHLO, and how each step fails."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import ExitStack
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
)
from tests.sending import SHORT, cases, interruptible, relay, session
from tests.smtp.helpers import connect_with, failure, in_clear_only, soon

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
    assert (error.transient, error.timed_out) == (True, False)
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


def connect_in_turn(config: RelayConfig, *ports: int, **others: Any) -> Session:
    """Connect to a host whose addresses are these ports of 127.0.0.1.

    A port of 0 is an address of a family that this machine lacks.
    """

    def resolve(host: str, port: int, until: float) -> list[AddressInfo]:
        assert (host, port) == (config.endpoint.host, config.endpoint.port)
        assert until > time.monotonic()
        kind = (socket.SOCK_STREAM, 0, "")
        return [
            (socket.AF_INET if each else 9999, *kind, ("127.0.0.1", each))
            for each in ports
        ]

    return connect_with(config, resolve=resolve, **others)


@pytest.mark.parametrize(
    "fault",
    cases(
        silent=On("banner", do=hang()),
        busy=On("banner", do=reply(421, "4.3.2 too busy", close=True)),
        closed=On("banner", do=reply(554, "5.3.2 closed")),
        gone_before_tls=On("tls", do=drop()),
        busy_in_clear=On("tls", do=reply(421, "4.3.2 too busy", close=True)),
        junk_in_tls=On("tls", do=once_spoken_to(raw(b"junk\r\n" * 9))),
        refusing_ehlo=On("ehlo", do=reply(421, "4.3.2 overloaded", close=True)),
        login_later=On("auth", do=reply(454, "4.7.0 try later")),
        gone_at_login=On("auth", do=drop()),
    ),
)
def test_the_next_address_is_used_when_the_first_one_fails(fault: On) -> None:
    state = RelayState()
    with FaultServer([fault]) as broken, FaultServer() as well:
        config = relay(well, timeout=SHORT)
        for _ in range(2):
            connect_in_turn(config, 0, broken.port, well.port, state=state).close()
        # The second connection began with the address that had worked.
        assert (broken.connections, well.connections) == (1, 2)
        assert broken.wait_for(lambda: broken.open_connections == 0)


def test_an_address_without_a_route_costs_its_share_of_the_time_once() -> None:
    state = RelayState()
    with blackhole() as dead, FaultServer() as well:
        config = relay(well, timeout=4 * SHORT)
        began = time.monotonic()
        connect_in_turn(config, dead, well.port, state=state).close()
        assert 2 * SHORT * 0.9 < time.monotonic() - began < 4 * SHORT
        began = time.monotonic()
        connect_in_turn(config, dead, well.port, state=state).close()
        assert time.monotonic() - began < 2 * SHORT


def test_the_other_address_is_used_when_the_good_one_dies() -> None:
    state = RelayState()
    with FaultServer() as first, FaultServer() as second:
        for _ in range(3):
            connect_in_turn(relay(first), first.port, second.port, state=state).close()
            first.close_door()
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
    ("at", "code", "error", "connections"),
    [
        ("banner", 421, ConnectFailed, [1, 1, 1]),
        # Two permanent refusals are enough.
        ("banner", 500, ConnectFailed, [1, 1, 0]),
        # No other address cures a refused login.
        ("auth", 535, AuthenticationFailed, [1, 0, 0]),
    ],
)
def test_addresses_are_tried_as_long_as_another_one_may_help(
    at: Any, code: int, error: type[Exception], connections: list[int]
) -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(FaultServer([On(at, do=reply(code, "not now"))]))
            for _ in range(3)
        ]
        with pytest.raises(error, match=str(code)):
            connect_in_turn(relay(servers[0]), *[each.port for each in servers])
        assert [each.connections for each in servers] == connections


@pytest.mark.parametrize(
    ("traits", "seconds", "error"),
    [
        ({"cert": "wrong_host"}, 5, TLSFailed),
        ({"auth": ()}, 5, AuthenticationFailed),
        ({"script": [On("banner", do=hang())]}, SHORT, ConnectFailed),
    ],
    ids=["certificate", "no login", "timed out"],
)
def test_no_other_address_is_tried_in_vain(
    traits: dict[str, Any], seconds: float, error: type[Exception]
) -> None:
    with FaultServer(**traits) as first, FaultServer() as second:
        with pytest.raises(error):
            connect_in_turn(relay(first), first.port, second.port, seconds=seconds)
        assert (first.connections, second.connections) == (1, 0)


# -- greeting and EHLO -----------------------------------------------------------------


LATE = "raise the option `timeout`"


@pytest.mark.parametrize(
    ("at", "do", "code", "shown"),
    [
        # The refusal of a whole site may end, so a queue keeps the mail.
        ("banner", reply(554, "5.7.1 not you"), 554, "greeting on"),
        ("banner", reply(421, "4.3.2 busy"), 421, "greeting on"),
        ("banner", reply(250), 250, "greeting on"),
        ("banner", hang(), 0, LATE),
        ("banner", raw(b"HTTP/1.1\r\n"), 0, "not an SMTP"),
        ("banner", raw(b"220 x", close=True), 0, "closed"),
        ("banner", endless(b"220-x\r\n"), 0, "100 lines"),
        ("banner", endless(b"x"), 0, "greeting on"),
        ("ehlo", hang(), 0, "EHLO on"),
        ("ehlo", drop(), 0, "EHLO on"),
        ("ehlo", reply(451), 451, "EHLO on"),
        # HELO is not tried.
        ("ehlo", reply(502), 502, "EHLO on"),
        ("ehlo", reply(504, "no FQDN"), 504, "set the option `local_hostname`"),
    ],
    ids=[
        *("closed", "busy", "250", "late", "http", "cut", "lines", "octets"),
        *("ehlo-late", "ehlo-lost", "ehlo-451", "ehlo-502", "ehlo-name"),
    ],
)
def test_a_step_before_the_login_fails_with_its_reason(
    at: Any, do: Action, code: int, shown: str
) -> None:
    with FaultServer([On(at, do=do)]) as server:
        error = failure(server, timeout=5 if code else SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.connections == 1
        assert b"HELO" not in server.received[1]
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (code, True)
    assert error.step == ("greeting" if at == "banner" else "EHLO")
    assert error.phase is Phase.CONNECT
    assert shown in str(error)
    assert (LATE in str(error)) is (at == "banner" and not code)


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


# -- the whole -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "steps"),
    [
        ("implicit", "DNS TCP TLS EHLO AUTH"),
        ("starttls", "DNS TCP EHLO TLS EHLO AUTH"),
        (None, "DNS TCP EHLO AUTH"),
    ],
)
def test_each_step_is_traced(tls: str | None, steps: str) -> None:
    traced: list[tuple[str, str]] = []
    with FaultServer(tls=tls) as server:
        connect_with(relay(server), trace=lambda *step: traced.append(step)).close()
    assert [step for step, _ in traced] == steps.split()
    shown = dict(traced)
    assert shown["DNS"] == "127.0.0.1"
    assert shown["TCP"] == f"127.0.0.1:{server.port}"
    assert shown["AUTH"] == "PLAIN"
    assert {each.split()[0] for each in FEATURES} <= set(shown["EHLO"].split())
    if tls:
        assert shown["TLS"].startswith("TLSv1.")
        assert "certificate valid until" in shown["TLS"]


def test_a_probe_does_not_log_in() -> None:
    with FaultServer() as server:
        config = relay(server)

        def greet() -> None:
            probe(config.endpoint, RelayState(), until=soon(), timeout=config.timeout)

        with in_clear_only(server):
            greet()
        assert len(server.commands) == 1
        server.close_door()
        with pytest.raises(ConnectFailed):
            greet()


def test_each_step_may_take_almost_as_long_as_the_timeout() -> None:
    slow = [On("banner", do=stall(0.8)), On("ehlo", do=stall(0.8))]
    with FaultServer(slow) as server:
        connect_with(relay(server, timeout=1.5)).close()
        assert server.connections == 1
