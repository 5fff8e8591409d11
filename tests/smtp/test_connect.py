"""From a host name to a session: what fails how, and that nothing is said in clear."""

from __future__ import annotations

import base64
import hmac
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import (
    AuthenticationFailed,
    ConnectFailed,
    LettermintError,
    TLSFailed,
)
from django_lettermint.pool import get_stats
from django_lettermint.results import Outcome, Phase
from django_lettermint.smtp import connect as connecting
from django_lettermint.smtp.connect import connect, probe
from tests.certificates import KINDS, ca_file
from tests.deadends import blackhole, refused_port
from tests.faults import once_spoken_to
from tests.faultserver import (
    TOKEN,
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
    backend,
    cases,
    interruptible,
    listening,
    mail,
    relay,
    result,
    session,
    strike_and_wait,
)

if TYPE_CHECKING:
    from django_lettermint.smtp.session import Session
    from tests.faults import Action

TLS_MODES = ["implicit", "starttls"]


def dial(server: FaultServer, *, seconds: float = 5.0, **options: Any) -> Session:
    """Connect; a test that gets a session closes it."""
    return connect(relay(server, **options), until=time.monotonic() + seconds)


def failure(server: FaultServer, *, seconds: float = 5.0, **options: Any) -> Any:
    with pytest.raises(LettermintError) as raised:
        dial(server, seconds=seconds, **options)
    return raised.value


def fail_to_send(sender: EmailBackend) -> Any:
    """Send a mail that does not go out, and return the error, heard exactly once."""
    message = mail()
    with listening() as heard, pytest.raises(LettermintError) as raised:
        sender.send_messages([message])
    assert heard.sent == []
    assert [each[0] for each in heard.failed] == [message]
    assert result(message).outcome is Outcome.NOT_SENT
    assert raised.value.retry_safe
    return raised.value


# -- DNS, TCP, greeting, EHLO ------------------------------------------------------------


def test_a_port_that_refuses_is_tried_so_often_and_no_more() -> None:
    with refused_port() as port:
        sender = EmailBackend(api_token=TOKEN, host="127.0.0.1", port=port, security="tls", retries=2)  # fmt: skip
        error = fail_to_send(sender)
    assert isinstance(error, ConnectFailed)
    assert error.transient
    assert "TCP on 127.0.0.1" in str(error)
    assert "refused" in str(error)
    assert "--scan-ports" in str(error)
    (stats,) = (each for each in get_stats() if each["port"] == port)
    assert stats["open_errors"] == 3


def test_a_host_that_swallows_packets_is_left_after_the_timeout() -> None:
    with blackhole() as port:
        sender = EmailBackend(api_token=TOKEN, host="127.0.0.1", port=port, security="tls", retries=1, timeout=SHORT)  # fmt: skip
        began = time.monotonic()
        error = fail_to_send(sender)
    assert time.monotonic() - began < 5
    assert isinstance(error, ConnectFailed)
    assert "timed out" in str(error)


def test_a_deadline_ends_the_tries_before_their_number_does() -> None:
    with blackhole() as port:
        sender = EmailBackend(api_token=TOKEN, host="127.0.0.1", port=port, security="tls", retries=50, timeout=SHORT, deadline=2 * SHORT)  # fmt: skip
        began = time.monotonic()
        error = fail_to_send(sender)
    assert time.monotonic() - began < 5
    assert isinstance(error, ConnectFailed)
    assert "timed out" in str(error)


def test_a_name_that_does_not_exist_is_named() -> None:
    sender = EmailBackend(api_token=TOKEN, host="nope.invalid", retries=0)
    error = fail_to_send(sender)
    assert isinstance(error, ConnectFailed)
    assert "DNS on nope.invalid:465 failed" in str(error)
    assert TOKEN not in str(error)


def test_a_name_is_connected_to_by_the_address_that_answers() -> None:
    # Where localhost is ::1 as well, nobody listens there.
    with FaultServer() as server:
        sender = EmailBackend(**server.options(host="localhost"))
        assert sender.send_messages([mail()]) == 1
        assert server.delivered == {"bob@example.org": 1}


def addresses(*ports: int) -> list[tuple[Any, Any, int, str, Any]]:
    kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    return [(*kind, ("127.0.0.1", port)) for port in ports]


def test_a_dead_address_leaves_time_for_the_next_one() -> None:
    with blackhole() as dead, FaultServer(tls=None) as server:
        until = time.monotonic() + 1
        sock, address = connecting._first_to_answer(addresses(dead, server.port), until)
        with sock:
            assert address == ("127.0.0.1", server.port)
            assert time.monotonic() < until
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_a_family_that_this_machine_lacks_is_passed_over() -> None:
    with FaultServer(tls=None) as server:
        unknown = (9999, socket.SOCK_STREAM, 0, "", ("x", 1))
        until = time.monotonic() + 5
        sock, address = connecting._first_to_answer(
            [unknown, *addresses(server.port)], until
        )
        sock.close()
        assert address == ("127.0.0.1", server.port)


def test_the_last_address_says_why_none_answered() -> None:
    with refused_port() as port, pytest.raises(ConnectionRefusedError):
        connecting._first_to_answer(addresses(port), time.monotonic() + 5)
    with pytest.raises(OSError, match="no address"):
        connecting._first_to_answer([], time.monotonic() + 5)


def test_an_interrupt_while_connecting_leaves_no_socket() -> None:
    with blackhole() as port, interruptible() as strike:
        timer = threading.Timer(0.1, strike)
        timer.start()
        # A socket left open would be a ResourceWarning, which is an error here.
        with pytest.raises(KeyboardInterrupt):
            connecting._first_to_answer(addresses(port), time.monotonic() + 30)
        timer.join()


def test_a_greeting_that_does_not_come_is_waited_for_as_long_as_the_timeout() -> None:
    with FaultServer([On("banner", do=hang())]) as server:
        error = fail_to_send(backend(server, timeout=SHORT, retries=1))
        assert server.connections == 2
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed)
    assert "greeting on 127.0.0.1" in str(error)


def test_a_greeting_of_421_is_tried_again_on_a_new_connection() -> None:
    script = [On("banner", connection=1, do=reply(421, "4.3.2 busy", close=True))]
    with FaultServer(script) as server, listening() as heard:
        assert backend(server).send_messages([mail()]) == 1
        assert server.delivered == {"bob@example.org": 1}
        assert server.connections == 2
        assert len(heard.sent) == 1
        assert heard.failed == []


def test_a_greeting_of_5yz_is_reported_at_once() -> None:
    with FaultServer([On("banner", do=reply(554, "5.7.1 not you"))]) as server:
        error = fail_to_send(backend(server, retries=5))
        assert server.connections == 1
        assert server.commands == []
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (554, True)
    assert error.result
    assert error.result.phase is Phase.CONNECT


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
def test_a_greeting_that_is_none_ends_the_connection(do: Action) -> None:
    with FaultServer([On("banner", do=do)]) as server:
        error = failure(server, timeout=SHORT)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.commands == []
    assert isinstance(error, ConnectFailed)
    assert error.redial


@pytest.mark.parametrize("tls", TLS_MODES)
def test_helo_is_no_substitute_for_ehlo(tls: str) -> None:
    with FaultServer([On("ehlo", do=reply(502, "5.5.1 no"))], tls=tls) as server:
        error = failure(server)
        assert [line[:4] for _, line in server.commands] == [b"EHLO"]
        assert server.logins == []
    if tls == "starttls":
        assert isinstance(error, TLSFailed)
    else:
        assert isinstance(error, ConnectFailed)
        assert not error.redial


def test_ehlo_refused_behind_starttls_is_no_failure_of_tls() -> None:
    first = On("ehlo", times=1, do=reply(250, "relay\nSTARTTLS"))
    script = [first, On("ehlo", do=reply(502))]
    with FaultServer(script, tls="starttls") as server:
        error = failure(server)
        assert server.logins == []
    assert isinstance(error, ConnectFailed)


def test_a_server_that_hangs_up_at_ehlo_is_tried_so_often_and_no_more() -> None:
    with FaultServer([On("ehlo", do=drop())]) as server:
        error = fail_to_send(backend(server, retries=2))
        assert server.connections == 3
    assert isinstance(error, ConnectFailed)
    assert "EHLO" in str(error)


@pytest.mark.parametrize("line", cases(long=b"x" * 400, short=b"F"))
def test_features_without_end_are_cut_at_the_limit(line: bytes) -> None:
    with FaultServer([On("ehlo", do=endless(b"250-" + line + b"\r\n"))]) as server:
        error = failure(server)
        assert server.wait_for(lambda: server.open_connections == 0)
    assert isinstance(error, ConnectFailed)
    assert "more than 65536 octets" in str(error)


def test_the_name_said_at_ehlo_is_the_option() -> None:
    with FaultServer() as server, session(server, local_hostname="box.example.org"):
        assert server.commands[0] == (1, b"EHLO box.example.org")


def test_features_are_read_whatever_their_letter_case() -> None:
    ehlo = reply(
        250, "relay\npipelining\nSize 1000\n\nauth login PLAIN\nlimits MAILMAX=7"
    )
    with FaultServer([On("ehlo", do=ehlo)]) as server, session(server) as held:
        assert held.features["SIZE"] == "1000"
        assert held.features["PIPELINING"] == ""
        assert held.mail_max == 7
        assert server.logins[0].mechanism == "PLAIN"


# -- TLS -------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("kind", [each for each in KINDS if each != "good"])
def test_a_server_that_cannot_be_verified_gets_neither_login_nor_mail(
    kind: str, tls: str
) -> None:
    with FaultServer(cert=kind, tls=tls) as server:
        sender = backend(server, retries=3)
        for number in (1, 2):
            error = fail_to_send(sender)
            assert isinstance(error, TLSFailed)
            assert not error.transient
            assert error.result
            assert error.result.phase is Phase.TLS
            # Not tried again, neither so nor in clear.
            assert server.connections == number
        assert server.logins == []
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}
        assert server.violations == []


def test_a_reason_that_ends_with_a_full_stop_gets_no_second_one() -> None:
    with FaultServer(cert="wrong_host") as server:
        error = failure(server)
    assert "not valid for '127.0.0.1'. Nothing was sent" in str(error)


def test_without_the_ca_file_a_private_relay_is_not_trusted() -> None:
    with FaultServer() as server:
        assert isinstance(failure(server, ca_file=None), TLSFailed)
        assert server.logins == []


def test_a_ca_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(ca_file(), path)
    with FaultServer() as server:
        config = relay(server, ca_file=str(path))
        path.unlink()
        with pytest.raises(TLSFailed, match=r"`ca_file` cannot be used: .*ca\.pem"):
            connect(config, until=time.monotonic() + 5)
        assert server.logins == []


def test_a_ca_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(ca_file(), path)
    with FaultServer() as server:
        config = relay(server, ca_file=str(path))
        path.write_text("no certificate\n")
        with pytest.raises(TLSFailed, match="ca_file"):
            connect(config, until=time.monotonic() + 5)
        shutil.copy(ca_file(), path)
        connect(config, until=time.monotonic() + 5).close()


@pytest.mark.parametrize(
    ("ehlo_says", "code", "what"),
    [
        ("relay\nAUTH PLAIN", 220, "is not offered"),
        ("relay\nSTARTTLS", 454, "was refused (454"),
        ("relay\nSTARTTLS", 250, "was refused (250"),
    ],
)
def test_starttls_that_is_stripped_or_refused_ends_it_twice_in_a_row(
    ehlo_says: str, code: int, what: str
) -> None:
    script = [On("ehlo", do=reply(250, ehlo_says)), On("starttls", do=reply(code))]
    with FaultServer(script, tls="starttls") as server:
        sender = backend(server, retries=3)
        for number in (1, 2):
            error = fail_to_send(sender)
            assert isinstance(error, TLSFailed)
            assert what in str(error)
            assert server.connections == number
        assert server.logins == []
        assert server.deliveries == []
        assert {line[:4] for _, line in server.commands} <= {b"EHLO", b"STAR"}


EVIL = b"250-evil\r\n250 AUTH LOGIN\r\n"


@pytest.mark.parametrize(
    "do", cases(with_the_reply=inject(EVIL), later=inject(EVIL, split=True))
)
def test_plaintext_behind_the_reply_to_starttls_never_counts(do: Action) -> None:
    with FaultServer([On("starttls", do=do)], tls="starttls") as server:
        error = fail_to_send(backend(server, retries=0))
        assert isinstance(error, TLSFailed)
        assert server.logins == []
        assert server.violations == []


def test_nothing_of_ours_stands_behind_starttls() -> None:
    with FaultServer(tls="starttls") as server:
        assert backend(server).send_messages([mail()]) == 1
        # The server notes input behind STARTTLS, and AUTH or MAIL in clear.
        assert server.violations == []
        assert [line[:8] for _, line in server.commands[:3]] == [
            b"EHLO " + server.commands[0][1][5:8],
            b"STARTTLS",
            b"EHLO " + server.commands[2][1][5:8],
        ]


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize(
    "do", cases(fin=drop(), rst=drop(rst=True), hang=hang(), junk=raw(b"junk\r\n" * 9))
)
def test_a_handshake_that_breaks_is_bounded_and_logs_in_nowhere(
    do: Action, tls: str
) -> None:
    with FaultServer([On("tls", do=once_spoken_to(do))], tls=tls) as server:
        error = failure(server, timeout=SHORT)
        assert isinstance(error, TLSFailed | ConnectFailed)
        assert isinstance(error, TLSFailed) or error.phase is Phase.TLS
        assert server.logins == []
        assert server.wait_for(lambda: server.open_connections == 0)


def test_tls_to_a_server_that_speaks_in_clear_fails() -> None:
    with FaultServer(tls=None) as server:
        error = failure(server, security="tls")
        assert isinstance(error, TLSFailed)
        assert "465 is implicit TLS" in str(error)
        assert server.logins == []


def test_starttls_to_a_server_that_waits_for_tls_fails_in_time() -> None:
    with FaultServer() as server:
        error = failure(server, security="starttls", timeout=SHORT)
        assert isinstance(error, ConnectFailed)
        assert server.commands == []


@pytest.mark.parametrize("phase", ["banner", "tls", "ehlo", "auth"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_any_step_propagates_and_closes_the_connection(
    kind: type[BaseException], phase: Any
) -> None:
    with FaultServer() as server, interruptible(kind) as strike:
        do = strike_and_wait(strike)
        server.script.append(On(phase, do=once_spoken_to(do) if phase == "tls" else do))
        with pytest.raises(kind):
            dial(server, timeout=5)
        assert server.wait_for(lambda: server.open_connections == 0)


def test_a_tls_stream_that_breaks_later_is_a_failed_connection() -> None:
    with FaultServer([On("ehlo", do=garble())]) as server:
        error = failure(server)
        assert isinstance(error, ConnectFailed)
        assert server.logins == []


# -- AUTH ------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", TLS_MODES)
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_every_mechanism_logs_in(mechanism: str, tls: str) -> None:
    with FaultServer(auth=(mechanism,), tls=tls) as server:
        assert backend(server).send_messages([mail()]) == 1
        assert server.logins == [(mechanism, "lettermint", True)]
        assert server.violations == []


def test_plain_is_preferred_and_a_wish_is_granted() -> None:
    with FaultServer(auth=("CRAM-MD5", "LOGIN", "PLAIN")) as server:
        for mechanism in (None, "LOGIN", "CRAM-MD5"):
            with session(server, auth_mechanism=mechanism):
                pass
        assert [each.mechanism for each in server.logins] == ["PLAIN", "LOGIN", "CRAM-MD5"]  # fmt: skip


@pytest.mark.parametrize(
    ("auth", "wish", "said"),
    [
        ((), None, "offers AUTH (nothing), not PLAIN or LOGIN or CRAM-MD5"),
        (("XOAUTH2",), None, "offers AUTH XOAUTH2"),
        (("PLAIN",), "CRAM-MD5", "offers AUTH PLAIN, not CRAM-MD5"),
    ],
)
@pytest.mark.parametrize("tls", ["implicit", "starttls", None])
def test_a_server_without_a_known_login_gets_no_mail(
    auth: tuple[str, ...], wish: str | None, said: str, tls: str | None
) -> None:
    with FaultServer(auth=auth, tls=tls) as server:
        error = fail_to_send(backend(server, auth_mechanism=wish))
        assert isinstance(error, AuthenticationFailed)
        assert said in str(error)
        assert server.logins == []
        assert server.connections == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_wrong_token_costs_one_login(mechanism: str) -> None:
    with FaultServer(auth=("PLAIN", "LOGIN", "CRAM-MD5")) as server:
        sender = backend(server, api_token="lm_wrong", auth_mechanism=mechanism)
        error = fail_to_send(sender)
        assert server.logins == [(mechanism, "lettermint", False)]
        assert server.connections == 1
    assert isinstance(error, AuthenticationFailed)
    assert error.smtp_code == 535
    assert not error.transient
    assert "535 at AUTH" in str(error)
    assert "check LETTERMINT_API_TOKEN" in str(error)
    assert "lm_wrong" not in str(error)


@pytest.mark.parametrize("code", [503, 534, 535, 250, 334])
def test_only_235_is_a_login(code: int) -> None:
    with FaultServer([On("auth", do=reply(code))]) as server:
        error = fail_to_send(backend(server))
        assert isinstance(error, AuthenticationFailed)
        assert len(server.logins) == 1
        assert server.delivered == {}


@pytest.mark.parametrize(
    "do",
    cases(
        later=reply(454, "4.7.0 later"),
        bye=reply(421, "bye", close=True),
        drop=drop(),
        hang=hang(),
    ),
)
def test_a_login_that_fails_for_now_is_tried_again(do: Action) -> None:
    with FaultServer([On("auth", times=1, do=do)]) as server:
        assert backend(server, timeout=SHORT).send_messages([mail()]) == 1
        assert server.delivered == {"bob@example.org": 1}
        assert server.connections == 2


def test_a_login_that_keeps_failing_for_now_is_tried_so_often_and_no_more() -> None:
    with FaultServer([On("auth", do=reply(454, "4.7.0 later"))]) as server:
        error = fail_to_send(backend(server, retries=2))
        assert len(server.logins) == 3
    assert isinstance(error, ConnectFailed)
    assert error.result
    assert error.result.phase is Phase.AUTH
    assert error.smtp_code == 454


@pytest.mark.parametrize(
    ("auth", "code"), [("LOGIN", 535), ("CRAM-MD5", 535), ("LOGIN", 454)]
)
def test_a_login_may_be_refused_before_the_token_is_said(auth: str, code: int) -> None:
    with FaultServer([On("auth_cont", do=reply(code))], auth=(auth,)) as server:
        error = failure(server)
        assert isinstance(error, AuthenticationFailed | ConnectFailed)
        blob = base64.b64encode(TOKEN.encode())
        assert all(blob not in received for received in server.received.values())


def test_a_login_may_be_refused_after_the_name() -> None:
    script = [On("auth_cont", times=1, do=reply(334, "VXNlcm5hbWU6"))]
    script.append(On("auth_cont", do=reply(535, "no")))
    with FaultServer(script, auth=("LOGIN",)) as server:
        assert isinstance(failure(server), AuthenticationFailed)


@pytest.mark.parametrize(
    "challenge", cases(signs="!!!", nothing="", umlaut="caf\u00e9")
)
def test_a_challenge_that_is_none_is_not_answered(challenge: str) -> None:
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
def test_a_login_without_end_is_bounded(do: Action) -> None:
    with FaultServer([On("auth_cont", do=do)], auth=("LOGIN",)) as server:
        error = failure(server, timeout=SHORT)
        assert isinstance(error, ConnectFailed | AuthenticationFailed)
        assert server.wait_for(lambda: server.open_connections == 0)


def blobs(mechanism: str) -> set[str]:
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


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize("code", [535, 454])
def test_what_a_relay_echoes_of_the_login_is_scrubbed(
    mechanism: str, code: int
) -> None:
    secrets = blobs(mechanism)
    echo = reply(code, "you said " + " ".join(sorted(secrets)))
    with FaultServer([On("auth", do=echo)], auth=(mechanism,)) as server:
        error = fail_to_send(backend(server, retries=0))
        for text in (str(error), error.smtp_error.decode(), error.result.text):
            assert not any(secret in text for secret in secrets)
        assert "you said *** ***" in str(error)


def test_garbage_in_place_of_a_reply_is_scrubbed_too() -> None:
    with FaultServer([On("auth", do=raw(TOKEN.encode() + b"!\r\n"))]) as server:
        error = failure(server)
        assert isinstance(error, ConnectFailed)
        assert "not an SMTP reply: '***!'" in str(error)


def test_a_relay_that_greets_with_the_token_is_scrubbed() -> None:
    with FaultServer([On("banner", do=reply(554, f"go away {TOKEN}"))]) as server:
        assert TOKEN not in str(failure(server))


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
def test_a_relay_that_echoes_the_token_later_is_scrubbed(phase: Any) -> None:
    with FaultServer([On(phase, do=reply(550, f"5.7.1 {TOKEN} is off"))]) as server:
        message = mail()
        with pytest.raises(LettermintError) as raised:
            backend(server).send_messages([message])
        assert TOKEN not in str(raised.value)
        assert TOKEN not in repr(vars(raised.value))
        assert TOKEN not in repr(result(message))


# -- in all ------------------------------------------------------------------------------


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
        until = time.monotonic() + 5
        connect(
            relay(server), until=until, trace=lambda *step: traced.append(step)
        ).close()
        assert [step for step, _ in traced] == steps
        assert traced[1] == ("TCP", f"127.0.0.1:{server.port}")
        assert traced[-1] == ("AUTH", "PLAIN")
        if tls:
            shown = dict(traced)["TLS"]
            assert shown.startswith("TLSv1.")
            assert "certificate valid until" in shown


def test_a_probe_says_no_login() -> None:
    with FaultServer() as server:
        probe(relay(server), until=time.monotonic() + 5)
        assert server.wait_for(lambda: server.open_connections == 0)
        assert server.logins == []
        server.close_door()
        with pytest.raises(ConnectFailed):
            probe(relay(server), until=time.monotonic() + 5)


@pytest.mark.parametrize("phase", ["banner", "tls", "ehlo", "auth"])
def test_a_deadline_may_end_in_any_step(phase: Any) -> None:
    with FaultServer([On(phase, do=hang())]) as server:
        began = time.monotonic()
        error = failure(server, seconds=SHORT)
        assert time.monotonic() - began < 5
        assert isinstance(error, ConnectFailed)
        assert "timed out" in str(error)
        assert server.wait_for(lambda: server.open_connections == 0)


@pytest.mark.parametrize("phase", ["banner", "ehlo", "auth"])
def test_a_step_that_takes_less_than_the_timeout_is_waited_for(phase: Any) -> None:
    with FaultServer([On(phase, do=stall(0.2))]) as server:
        assert backend(server, timeout=5).send_messages([mail()]) == 1
        assert server.connections == 1


def test_an_unexpected_error_is_not_disguised() -> None:
    def trace(step: str, _: str) -> None:
        raise LookupError(step)

    with FaultServer() as server, pytest.raises(LookupError, match="DNS"):
        connect(relay(server), until=time.monotonic() + 5, trace=trace)
