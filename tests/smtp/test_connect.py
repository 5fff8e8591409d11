"""From a host name to a session: how each step fails, and that nothing leaks in clear."""

from __future__ import annotations

import base64
import hmac
import shutil
import socket
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
    TLSFailed,
)
from django_lettermint.results import Phase
from django_lettermint.smtp import RelayState, Session, connect, probe
from tests.certificates import KINDS, ca_file
from tests.deadends import blackhole, refused_port
from tests.faults import once_spoken_to
from tests.faultserver import (
    FEATURES,
    TOKEN,
    Answer,
    FaultServer,
    On,
    drop,
    endless,
    garble,
    hang,
    inject,
    raw,
    reply,
    stall,
    trickle,
)
from tests.sending import (
    SHORT,
    cases,
    interruptible,
    relay,
    session,
    strike_and_wait,
    transaction,
)

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig
    from django_lettermint.smtp.dns import AddressInfo
    from tests.faults import Action, Wire

TLS_MODES = ["implicit", "starttls"]
MECHANISMS = ["PLAIN", "LOGIN", "CRAM-MD5"]


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def connect_with(
    config: RelayConfig, *, seconds: float = 5.0, **others: Any
) -> Session:
    """Connect; the test closes the session."""
    state = others.pop("state", None) or RelayState()
    return connect(
        config.endpoint, state, until=soon(seconds), timeout=config.timeout, **others
    )


def failure_with(config: RelayConfig, **others: Any) -> Any:
    """Return the error that connecting ends with."""
    with pytest.raises(LettermintError) as raised:
        connect_with(config, **others)
    assert raised.value.retry_safe
    assert TOKEN not in str(raised.value)
    return raised.value


def failure(server: FaultServer, *, seconds: float = 5.0, **options: Any) -> Any:
    return failure_with(relay(server, **options), seconds=seconds)


# -- DNS and TCP -------------------------------------------------------------------------


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
    assert f"TCP on 127.0.0.1:{port} failed" in str(error)
    assert "refused" in str(error)
    assert "--scan-ports" in str(error)


def test_a_host_that_swallows_packets_is_given_up_after_the_timeout() -> None:
    with FaultServer() as server, blackhole() as port:
        began = time.monotonic()
        error = failure(server, port=port, timeout=SHORT)
    assert SHORT * 0.9 < time.monotonic() - began < 4
    assert isinstance(error, ConnectFailed)
    assert "timed out" in str(error)


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


# -- a host with several addresses -------------------------------------------------------


def connect_in_turn(
    config: RelayConfig, *ports: int, state: RelayState, **others: Any
) -> Session:
    """Connect to a host whose addresses are these ports of 127.0.0.1."""

    def resolve(host: str, port: int, until: float) -> list[AddressInfo]:
        assert (host, port) == (config.endpoint.host, config.endpoint.port)
        assert until > time.monotonic()
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, ("127.0.0.1", each)) for each in ports]

    return connect_with(config, state=state, resolve=resolve, **others)


SICK = cases(
    silent=On("banner", do=hang()),
    busy=On("banner", do=reply(421, "4.3.2 too busy", close=True)),
    closed=On("banner", do=reply(554, "5.3.2 closed")),
    gone=On("banner", do=drop()),
    reset=On("banner", do=drop(rst=True)),
    gone_before_tls=On("tls", do=drop()),
    gone_in_tls=On("tls", do=once_spoken_to(drop())),
    silent_in_tls=On("tls", do=hang()),
    busy_in_clear=On("tls", do=reply(421, "4.3.2 too busy", close=True)),
    junk_in_tls=On("tls", do=once_spoken_to(raw(b"junk\r\n" * 9))),
    refusing_ehlo=On("ehlo", do=reply(421, "4.3.2 overloaded", close=True)),
    silent_at_login=On("auth", do=hang()),
    login_later=On("auth", do=reply(454, "4.7.0 try later")),
    gone_at_login=On("auth", do=drop()),
)


@pytest.mark.parametrize("fault", SICK)
def test_the_next_address_is_used_when_the_first_one_is_sick(fault: On) -> None:
    state = RelayState()
    with FaultServer([fault]) as sick, FaultServer() as well:
        config = relay(well, timeout=SHORT)
        for _ in range(2):
            connect_in_turn(config, sick.port, well.port, state=state).close()
        # The second connection began with the address that had worked.
        assert (sick.connections, well.connections) == (1, 2)
        assert sick.wait_for(lambda: sick.open_connections == 0)


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
            connect_in_turn(relay(server), *ports, state=RelayState())
    assert raised.value.smtp_code == 421
    assert raised.value.smtp_error == b"4.3.2 too busy"


def test_two_permanent_refusals_are_enough() -> None:
    closed = On("banner", do=reply(554, "5.3.2 closed"))
    with FaultServer([closed]) as one, FaultServer([closed]) as two:
        with FaultServer() as three:
            ports = [one.port, two.port, three.port]
            with pytest.raises(ConnectFailed) as raised:
                connect_in_turn(relay(one), *ports, state=RelayState())
        assert (one.connections, two.connections, three.connections) == (1, 1, 0)
    assert raised.value.smtp_code == 554


def test_refusals_for_now_lead_to_every_address() -> None:
    busy = On("banner", do=reply(421, "4.3.2 too busy"))
    with FaultServer([busy]) as one, FaultServer([busy]) as two:
        with FaultServer() as three:
            ports = [one.port, two.port, three.port]
            connect_in_turn(relay(one), *ports, state=RelayState()).close()
        assert (one.connections, two.connections, three.connections) == (1, 1, 1)


def test_no_address_is_tried_when_time_is_over() -> None:
    with FaultServer([On("banner", do=hang())]) as sick, FaultServer() as well:
        ports = [sick.port, well.port]
        with pytest.raises(ConnectFailed, match="timed out"):
            connect_in_turn(relay(well), *ports, state=RelayState(), seconds=SHORT)
        assert (sick.connections, well.connections) == (1, 0)


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
            connect_in_turn(relay(first), first.port, second.port, state=RelayState())
        assert (first.connections, second.connections) == (1, 0)


# -- greeting and EHLO -------------------------------------------------------------------


def test_a_late_greeting_is_a_time_out_that_names_the_option() -> None:
    with FaultServer([On("banner", do=hang())]) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed)
    assert f"greeting on 127.0.0.1:{server.port} failed: timed out" in str(error)
    assert "raise the option `timeout`" in str(error)


@pytest.mark.parametrize("step", ["ehlo", "auth"])
def test_a_later_time_out_does_not_speak_of_the_greeting(step: Any) -> None:
    with FaultServer([On(step, do=hang())]) as server:
        error = failure(server, timeout=SHORT)
    assert "timed out" in str(error)
    assert "greets late" not in str(error)


@pytest.mark.parametrize("code", [421, 450, 521, 554])
def test_a_greeting_may_be_a_refusal(code: int) -> None:
    with FaultServer([On("banner", do=reply(code, "5.7.1 not you"))]) as server:
        error = failure(server)
        assert server.connections == 1
        assert server.commands == []
    assert isinstance(error, ConnectFailed)
    # A site's refusal may heal, so a queue keeps the mail.
    assert (error.smtp_code, error.transient) == (code, True)
    assert (error.step, error.phase) == ("greeting", Phase.CONNECT)
    assert error.limits_connections is (code < 500)


@pytest.mark.parametrize(
    "do",
    cases(
        http=raw(b"HTTP/1.1 400 x\r\n"),
        code_850=raw(b"850 what\r\n"),
        cut_off=raw(b"220 cu", close=True),
        more_and_more=endless(b"220-more\r\n"),
        no_line_end=endless(b"x"),
        slow=trickle(b"220-slow\r\n" * 99, 0.05),
        code_250=reply(250, "not 220"),
    ),
)
def test_anything_but_a_greeting_ends_the_connection(do: Action) -> None:
    with FaultServer([On("banner", do=do)]) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.commands == []
    assert isinstance(error, ConnectFailed)
    assert error.transient


@pytest.mark.parametrize("tls", TLS_MODES)
def test_helo_is_not_tried_when_ehlo_is_refused(tls: str) -> None:
    with FaultServer([On("ehlo", do=reply(502, "5.5.1 no"))], tls=tls) as server:
        error = failure(server)
        assert [line[:4] for _, line in server.commands] == [b"EHLO"]
        assert server.logins == []
    if tls == "starttls":
        assert isinstance(error, TLSFailed)
        assert "EHLO was refused: 502" in str(error)
    else:
        assert isinstance(error, ConnectFailed)
        assert error.smtp_code == 502


@pytest.mark.parametrize("tls", TLS_MODES)
def test_ehlo_refused_for_now_is_a_failed_connection(tls: str) -> None:
    with FaultServer([On("ehlo", do=reply(451, "4.3.2 later"))], tls=tls) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.step) == (451, "EHLO")


def test_ehlo_refused_after_starttls_is_a_failed_connection() -> None:
    first = On("ehlo", times=1, do=reply(250, "relay\nSTARTTLS"))
    script = [first, On("ehlo", do=reply(502))]
    with FaultServer(script, tls="starttls") as server:
        error = failure(server)
        assert server.logins == []
    assert isinstance(error, ConnectFailed)
    assert error.smtp_code == 502


def test_a_connection_lost_at_ehlo_is_a_failed_connection() -> None:
    with FaultServer([On("ehlo", do=drop())]) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert "EHLO on 127.0.0.1" in str(error)


@pytest.mark.parametrize("line", cases(long=b"x" * 400, short=b"F"))
def test_endless_features_are_cut_off(line: bytes) -> None:
    with FaultServer([On("ehlo", do=endless(b"250-" + line + b"\r\n"))]) as server:
        error = failure(server)
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed)
    assert "more than 65536 octets" in str(error)


def test_the_name_at_ehlo_is_the_option_local_hostname() -> None:
    with FaultServer() as server, session(server, local_hostname="box.example.org"):
        assert server.commands[0] == (1, b"EHLO box.example.org")


def test_the_name_at_ehlo_is_a_full_name_or_an_address_literal_by_default() -> None:
    with FaultServer() as server, session(server):
        name = server.commands[0][1].removeprefix(b"EHLO ")
        assert name == b"[127.0.0.1]" or b"." in name


def test_features_are_read_in_any_letter_case() -> None:
    ehlo = reply(
        250, "relay\npipelining\nSize 1000\n\nauth login PLAIN\nlimits MAILMAX=7"
    )
    with FaultServer([On("ehlo", do=ehlo)]) as server, session(server) as held:
        assert held.features["SIZE"] == "1000"
        assert held.features["PIPELINING"] == ""
        assert held.mail_max == 7
        assert server.logins[0].mechanism == "PLAIN"


# -- TLS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("kind", [each for each in KINDS if each != "good"])
def test_a_server_that_cannot_be_verified_gets_no_login(kind: str, tls: str) -> None:
    with FaultServer(cert=kind, tls=tls) as server:
        error = failure(server)
        assert server.connections == 1
        assert server.logins == []
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}
        assert server.violations == []
    # A certificate is renewed within hours: a queue keeps the mail until then.
    assert error.transient
    assert error.step == "TLS"
    if kind.startswith("tls1"):
        assert isinstance(error, ConnectFailed)
        assert error.phase is Phase.TLS
    else:
        assert isinstance(error, TLSFailed)
        assert "certificate not accepted" in str(error)
        assert "check `host`, and `ca_file`" in str(error)


def test_the_reason_of_a_wrong_certificate_is_one_sentence() -> None:
    with FaultServer(cert="wrong_host") as server:
        error = failure(server)
    assert "not valid for '127.0.0.1'; check `host`" in str(error)


def test_a_private_relay_is_not_trusted_without_a_ca_file() -> None:
    with FaultServer() as server:
        assert isinstance(failure(server, ca_file=None), TLSFailed)
        assert server.logins == []


def test_a_missing_ca_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(ca_file(), path)
    with FaultServer() as server:
        config = relay(server, ca_file=str(path))
        path.unlink()
        error = failure_with(config)
        assert isinstance(error, TLSFailed)
        assert "the option `ca_file` cannot be used: " in str(error)
        assert "ca.pem" in str(error)
        assert server.logins == []


def test_a_replaced_ca_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(ca_file(), path)
    with FaultServer() as server:
        config = relay(server, ca_file=str(path))
        path.write_text("no certificate\n")
        assert "`ca_file` cannot be used" in str(failure_with(config))
        shutil.copy(ca_file(), path)
        connect_with(config).close()


def test_a_replaced_system_bundle_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with FaultServer() as server:
        config = relay(server, ca_file=None)
        assert isinstance(failure_with(config), TLSFailed)
        shutil.copy(ca_file(), bundle)
        connect_with(config).close()
        bundle.write_text("")
        assert isinstance(failure_with(config), TLSFailed)


BUSY = b"421 Too many connections from this IP address\r\n"
CLOSED = b"554-5.7.1 Your network is blocked\r\n554 5.7.1 Ask us why\r\n"


def refuse_in_pieces(wire: Wire) -> None:
    for octet in BUSY:
        wire.write(bytes([octet]))
        wire.pause(0.002)
    wire.drop()


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    ("do", "code", "text"),
    [
        (raw(BUSY, close=True), 421, "Too many"),
        (raw(CLOSED, close=True), 554, "5.7.1 Ask us why"),
        (once_spoken_to(raw(BUSY, close=True)), 421, "Too many"),
        (once_spoken_to(raw(BUSY)), 421, "Too many"),
        (once_spoken_to(raw(CLOSED)), 554, "5.7.1 Ask us why"),
        (lambda _: Answer(0, refuse_in_pieces), 421, "Too many"),
        (trickle(b"452 4.3.1 full\r\n", 0.002), 452, "4.3.1 full"),
        (raw(b"400\n", close=True), 400, ""),
    ],
    ids=[
        "before ClientHello",
        "before ClientHello for good",
        "after ClientHello",
        "after ClientHello and open",
        "after ClientHello for good",
        "octet by octet and closed",
        "octet by octet and open",
        "without text",
    ],
)
def test_a_refusal_in_clear_where_tls_begins_is_a_refused_connection(
    do: Action, code: int, text: str, tls: str
) -> None:
    with FaultServer([On("tls", do=do)], tls=tls) as server:
        error = failure(server)
        assert server.logins == []
        assert server.wait_for(lambda: server.open_connections == 0)
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}
    assert isinstance(error, ConnectFailed)
    assert error.transient
    assert error.smtp_code == code
    assert text in error.smtp_error.decode()
    assert error.step == ("greeting" if tls == "implicit" else "STARTTLS")


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    "said", [b"220 relay ESMTP\r\n", b"250 AUTH PLAIN\r\n", b"354 go ahead\r\n"]
)
@pytest.mark.parametrize("wait", cases(at_once=False, after_client_hello=True))
def test_no_reply_in_clear_but_a_refusal_counts_where_tls_begins(
    said: bytes, wait: Any, tls: str
) -> None:
    do = once_spoken_to(raw(said)) if wait else raw(said)
    with FaultServer([On("tls", do=do)], tls=tls) as server:
        error = failure(server)
        assert server.logins == []
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}
    assert isinstance(error, TLSFailed)
    assert error.smtp_code == 0
    assert "465 is implicit TLS" in str(error) or "followed by plaintext" in str(error)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"421 cut of", "closed the connection"),
        (b"4 is no reply\r\n", "not an SMTP reply"),
        (b"421-more\r\n" * 101, "more than"),
        (b"", "the server closed the connection"),
    ],
    ids=["cut off", "no reply", "endless", "nothing"],
)
def test_a_broken_refusal_where_tls_begins_is_a_failed_connection(
    said: bytes, reason: str
) -> None:
    with FaultServer([On("tls", do=raw(said, close=True))]) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert error.smtp_code == 0
    assert reason in str(error)
    assert error.phase is Phase.TLS


def test_tls_to_a_plaintext_port_fails_with_advice() -> None:
    with FaultServer(tls=None) as server:
        error = failure(server, security="tls")
        assert server.logins == []
    assert isinstance(error, TLSFailed)
    assert "465 is implicit TLS, the other ports STARTTLS" in str(error)


def test_starttls_to_a_tls_port_fails_in_time() -> None:
    with FaultServer() as server:
        error = failure(server, security="starttls", timeout=SHORT)
        assert server.commands == []
    assert isinstance(error, ConnectFailed)


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    "do",
    cases(
        fin=drop(),
        rst=drop(rst=True),
        hang=hang(),
        junk=raw(b"junk\r\n" * 9),
        alert=raw(b"\x15\x03\x03\x00\x02\x02\x50"),  # fatal: internal_error
    ),
)
def test_a_broken_handshake_is_a_failed_connection(do: Action, tls: str) -> None:
    with FaultServer([On("tls", do=once_spoken_to(do))], tls=tls) as server:
        error = failure(server, timeout=SHORT)
        assert server.logins == []
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed)
    assert error.transient
    assert error.phase is Phase.TLS


def test_a_broken_record_after_the_handshake_is_a_failed_connection() -> None:
    with FaultServer([On("ehlo", do=garble())]) as server:
        error = failure(server)
        assert server.logins == []
    assert isinstance(error, ConnectFailed)


@pytest.mark.parametrize(
    ("ehlo_says", "code", "what"),
    [
        ("relay\nAUTH PLAIN", 220, "is not offered"),
        ("relay\nSTARTTLS", 502, "was refused (502"),
        ("relay\nSTARTTLS", 554, "was refused (554"),
        ("relay\nSTARTTLS", 250, "was refused (250"),
    ],
)
def test_a_relay_without_starttls_gets_no_login(
    ehlo_says: str, code: int, what: str
) -> None:
    script = [On("ehlo", do=reply(250, ehlo_says)), On("starttls", do=reply(code))]
    with FaultServer(script, tls="starttls") as server:
        error = failure(server)
        assert server.logins == []
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}
    assert isinstance(error, TLSFailed)
    assert error.transient
    assert error.step == "STARTTLS"
    assert what in str(error)
    assert "security='tls' is safer" in str(error)


@pytest.mark.parametrize("code", [421, 454])
def test_starttls_refused_for_now_is_a_failed_connection(code: int) -> None:
    later = On("starttls", do=reply(code, "4.7.0 TLS not available"))
    with FaultServer([later], tls="starttls") as server:
        error = failure(server)
        assert server.logins == []
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (code, True)
    assert (error.step, error.phase) == ("STARTTLS", Phase.TLS)


EVIL = b"250-evil\r\n250 AUTH LOGIN\r\n"


@pytest.mark.parametrize(
    "do", cases(with_the_reply=inject(EVIL), later=inject(EVIL, split=True))
)
def test_plaintext_after_the_reply_to_starttls_is_not_read_as_tls(do: Action) -> None:
    with FaultServer([On("starttls", do=do)], tls="starttls") as server:
        error = failure(server)
        assert isinstance(error, TLSFailed)
        assert server.logins == []
        assert server.violations == []


def test_only_ehlo_and_starttls_are_sent_in_clear() -> None:
    with FaultServer(tls="starttls") as server, session(server) as held:
        held.send(transaction())
        # The server notes input behind STARTTLS, and AUTH or MAIL in clear.
        assert server.violations == []
        verbs = [line.split()[0] for _, line in server.commands]
        assert verbs[:4] == [b"EHLO", b"STARTTLS", b"EHLO", b"AUTH"]


@pytest.mark.parametrize("when", ["after 220", "with 220"])
def test_a_connection_closed_after_starttls_is_a_failed_connection(when: str) -> None:
    fault = {
        "after 220": On("tls", do=drop()),
        "with 220": On("starttls", do=raw(b"220 2.0.0 go ahead\r\n", close=True)),
    }[when]
    with FaultServer([fault], tls="starttls") as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert error.phase is Phase.TLS


@pytest.mark.parametrize("behind", cases(refusal=BUSY, junk=b"junk\r\n", reply=EVIL))
def test_plaintext_in_the_same_segment_as_the_reply_to_starttls(behind: bytes) -> None:
    with FaultServer([On("starttls", do=inject(behind))], tls="starttls") as server:
        error = failure(server)
        assert server.logins == []
    if behind == EVIL:
        assert isinstance(error, TLSFailed)
        assert "was followed by plaintext" in str(error)
    else:
        assert isinstance(error, ConnectFailed)
        assert error.smtp_code == (421 if behind == BUSY else 0)
    assert error.transient


@pytest.mark.parametrize("phase", ["banner", "tls", "ehlo", "auth"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_any_step_propagates_and_closes_the_connection(
    kind: type[BaseException], phase: Any
) -> None:
    with FaultServer() as server, interruptible(kind) as strike:
        do = strike_and_wait(strike)
        server.script.append(On(phase, do=once_spoken_to(do) if phase == "tls" else do))
        with pytest.raises(kind):
            connect_with(relay(server, timeout=5))
        assert server.wait_for(lambda: server.open_connections == 0)


# -- AUTH --------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_logs_in(mechanism: str, tls: str) -> None:
    with FaultServer(auth=(mechanism,), tls=tls) as server, session(server):
        assert server.logins == [(mechanism, "lettermint", True)]
        assert server.violations == []


def test_plain_is_preferred_unless_the_option_names_another_mechanism() -> None:
    with FaultServer(auth=("CRAM-MD5", "LOGIN", "PLAIN")) as server:
        for mechanism in (None, "LOGIN", "CRAM-MD5"):
            with session(server, auth_mechanism=mechanism):
                pass
        used = [each.mechanism for each in server.logins]
        assert used == ["PLAIN", "LOGIN", "CRAM-MD5"]


@pytest.mark.parametrize(
    ("offer", "mechanism"),
    [
        ("AUTH=PLAIN LOGIN", "PLAIN"),
        ("AUTH=LOGIN", "LOGIN"),
        ("auth=login", "LOGIN"),
        ("AUTH PLAIN LOGIN\nAUTH XOAUTH2", "PLAIN"),
        ("AUTH XOAUTH2\nAUTH=LOGIN", "LOGIN"),
        ("AUTH=XOAUTH2\nAUTH LOGIN", "LOGIN"),
        ("AUTH\tPLAIN", "PLAIN"),
        ("AUTH  LOGIN\tPLAIN", "PLAIN"),
        ("AUTH\nAUTH PLAIN", "PLAIN"),
    ],
)
def test_offers_of_auth_are_merged(offer: str, mechanism: str) -> None:
    script = [On("ehlo", do=reply(250, f"relay\n{offer}\nPIPELINING"))]
    with FaultServer(script) as server, session(server) as held:
        assert server.logins == [(mechanism, "lettermint", True)]
        assert "PIPELINING" in held.features


@pytest.mark.parametrize(
    ("auth", "wish", "said"),
    [
        ((), None, "offers AUTH (nothing), not PLAIN or LOGIN or CRAM-MD5"),
        (("XOAUTH2",), None, "offers AUTH XOAUTH2"),
        (("PLAIN",), "CRAM-MD5", "offers AUTH PLAIN, not CRAM-MD5"),
    ],
)
@pytest.mark.parametrize("tls", ["implicit", "starttls", None])
def test_a_server_without_a_known_mechanism_is_an_error(
    auth: tuple[str, ...], wish: str | None, said: str, tls: str | None
) -> None:
    with FaultServer(auth=auth, tls=tls) as server:
        error = failure(server, auth_mechanism=wish)
        assert server.logins == []
        assert server.connections == 1
    assert isinstance(error, AuthenticationFailed)
    assert said in str(error)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_token_costs_one_login(mechanism: str) -> None:
    with FaultServer(auth=tuple(MECHANISMS)) as server:
        error = failure(server, api_token="lm_wrong", auth_mechanism=mechanism)
        assert server.logins == [(mechanism, "lettermint", False)]
        assert server.connections == 1
    assert isinstance(error, AuthenticationFailed)
    assert error.smtp_code == 535
    assert not error.transient
    assert f"535 at AUTH {mechanism}" in str(error)
    assert "check LETTERMINT_API_TOKEN" in str(error)
    assert "lm_wrong" not in str(error)


@pytest.mark.parametrize("code", [503, 534, 535, 250, 334])
def test_only_235_is_a_successful_login(code: int) -> None:
    with FaultServer([On("auth", do=reply(code))]) as server:
        error = failure(server)
        assert len(server.logins) == 1
    assert isinstance(error, AuthenticationFailed)


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (reply(421, "bye", close=True), 421),
        (reply(432, "4.7.12 change your password"), 432),
        (reply(454, "4.7.0 later"), 454),
        (drop(), 0),
        (hang(), 0),
    ],
    ids=["421", "432", "454", "drop", "hang"],
)
def test_a_login_that_fails_for_now_is_a_failed_connection(
    do: Action, code: int
) -> None:
    with FaultServer([On("auth", do=do)]) as server:
        error = failure(server, timeout=SHORT)
        assert len(server.logins) == 1
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (code, True)
    assert (error.step, error.phase) == ("AUTH", Phase.AUTH)


@pytest.mark.parametrize(
    ("auth", "code"), [("LOGIN", 535), ("CRAM-MD5", 535), ("LOGIN", 454)]
)
def test_a_login_refused_early_does_not_reveal_the_token(auth: str, code: int) -> None:
    with FaultServer([On("auth_cont", do=reply(code))], auth=(auth,)) as server:
        error = failure(server)
        blob = base64.b64encode(TOKEN.encode())
        assert all(blob not in received for received in server.received.values())
    expected = AuthenticationFailed if code >= 500 else ConnectFailed
    assert isinstance(error, expected)


def test_a_login_may_be_refused_after_the_user_name() -> None:
    script = [On("auth_cont", times=1, do=reply(334, "VXNlcm5hbWU6"))]
    script.append(On("auth_cont", do=reply(535, "no")))
    with FaultServer(script, auth=("LOGIN",)) as server:
        assert isinstance(failure(server), AuthenticationFailed)


@pytest.mark.parametrize(
    "challenge", cases(signs="!!!", nothing="", umlaut="caf\u00e9")
)
def test_a_challenge_that_is_not_base64_is_not_answered(challenge: str) -> None:
    script = [On("auth_cont", do=reply(334, challenge))]
    with FaultServer(script, auth=("CRAM-MD5",)) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert "challenge is not base64" in str(error)
    assert error.phase is Phase.AUTH


@pytest.mark.parametrize(
    "do",
    cases(
        hang=hang(), challenges=endless(b"334 \r\n"), challenge=endless(b"334-x\r\n")
    ),
)
def test_an_endless_login_is_bounded(do: Action) -> None:
    with FaultServer([On("auth_cont", do=do)], auth=("LOGIN",)) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed | AuthenticationFailed)


# -- secrets -----------------------------------------------------------------------------


def token_forms(mechanism: str) -> set[str]:
    """Return the forms in which a relay may echo the token."""
    token = TOKEN.encode()
    challenge = b"<1896.697170952@fault.test>"
    digest = hmac.new(token, challenge, "md5").hexdigest().encode()
    responses = {
        "PLAIN": b"\0lettermint\0" + token,
        "LOGIN": token,
        "CRAM-MD5": b"lettermint " + digest,
    }
    return {
        TOKEN,
        base64.b64encode(token).decode(),
        base64.b64encode(responses[mechanism]).decode(),
    }


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("code", [535, 454])
def test_an_echoed_login_is_redacted(mechanism: str, code: int) -> None:
    secrets = token_forms(mechanism)
    echo = reply(code, "you said " + " ".join(sorted(secrets)))
    with FaultServer([On("auth", do=echo)], auth=(mechanism,)) as server:
        error = failure(server)
    for text in (str(error), error.smtp_error.decode()):
        assert not any(secret in text for secret in secrets)
    assert "you said *** ***" in str(error)


def test_an_invalid_reply_is_redacted() -> None:
    with FaultServer([On("auth", do=raw(TOKEN.encode() + b"!\r\n"))]) as server:
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert "not an SMTP reply: '***!'" in str(error)


def test_a_greeting_with_the_token_is_redacted() -> None:
    with FaultServer([On("banner", do=reply(554, f"go away {TOKEN}"))]) as server:
        assert "go away ***" in str(failure(server))


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
def test_a_later_reply_with_the_token_is_redacted(phase: Any) -> None:
    with FaultServer([On(phase, do=reply(550, f"5.7.1 {TOKEN} is off"))]) as server:
        one = transaction()
        with session(server) as held:
            held.send(one)
        assert str(one.reply) == "550 5.7.1 *** is off"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    "do", cases(drop=drop(), refused=reply(535), junk=raw(b"?\r\n"))
)
def test_no_frame_of_an_error_holds_the_token(do: Action, mechanism: str) -> None:
    # Django's debug page shows the local variables of each frame of a traceback.
    with FaultServer([On("auth", do=do)], auth=(mechanism,)) as server:
        config = relay(server)
        with pytest.raises(LettermintError) as raised:
            connect(config.endpoint, RelayState(), until=soon(), timeout=5)
    chain = (raised.value, raised.value.__cause__, raised.value.__context__)
    frames = [
        frame
        for error in chain
        if error
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename != __file__
    ]
    assert frames
    shown = repr([frame.f_locals for frame in frames])
    assert not any(secret in shown for secret in token_forms(mechanism))


# -- the whole ---------------------------------------------------------------------------


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
        assert [line[:4] for _, line in server.commands] == [b"EHLO"]
        server.close_door()
        with pytest.raises(ConnectFailed):
            probe(config.endpoint, RelayState(), until=soon(), timeout=config.timeout)


@pytest.mark.parametrize("phase", ["banner", "tls", "ehlo", "auth"])
def test_the_deadline_ends_any_step(phase: Any) -> None:
    with FaultServer([On(phase, do=hang())]) as server:
        began = time.monotonic()
        error = failure(server, seconds=SHORT)
        assert time.monotonic() - began < 4
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed)
    assert "timed out" in str(error)


@pytest.mark.parametrize("phase", ["banner", "ehlo", "auth"])
def test_a_step_may_take_almost_as_long_as_the_timeout(phase: Any) -> None:
    slow = [On(phase, do=stall(0.2)), On("ehlo", do=stall(0.2))]
    with FaultServer(slow) as server, session(server, timeout=1):
        assert server.connections == 1


def test_an_unexpected_error_is_not_turned_into_another() -> None:
    def trace(step: str, _: str) -> None:
        raise LookupError(step)

    with FaultServer() as server, pytest.raises(LookupError, match="DNS"):
        connect_with(relay(server), trace=trace)
