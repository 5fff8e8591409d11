"""No login without verified TLS, and nothing but EHLO and STARTTLS in clear."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import ConnectFailed, TLSFailed
from django_lettermint.results import Phase
from tests.certificates import KINDS, ca_file
from tests.faults import chain, once_spoken_to
from tests.faultserver import FaultServer, On, drop, hang, normal, raw, reply, trickle
from tests.sending import SHORT, relay, session, transaction
from tests.smtp.helpers import connect_with, failure, failure_with, in_clear_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults import Action

TLS_MODES = pytest.mark.parametrize("tls", ["implicit", "starttls"])


# -- certificates ----------------------------------------------------------------------


@TLS_MODES
@pytest.mark.parametrize("kind", [each for each in KINDS if each != "good"])
def test_a_server_that_cannot_be_verified_gets_no_login(kind: str, tls: str) -> None:
    with FaultServer(cert=kind, tls=tls) as server, in_clear_only(server):
        error = failure(server)
        assert server.connections == 1
    # A certificate is renewed within hours: a queue keeps the mail until then.
    assert error.transient
    assert error.step == "TLS"
    if kind.startswith("tls1"):
        assert isinstance(error, ConnectFailed)
        assert error.phase is Phase.TLS
    else:
        assert isinstance(error, TLSFailed)
        assert error.verify_code
        assert f"TLS with 127.0.0.1:{server.port} failed: certificate not" in str(error)
        assert ".." not in str(error)
        assert ". Nothing was sent; check `host`, and `ca_file`" in str(error)


def test_a_replaced_ca_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    shutil.copy(ca_file(), path)
    with FaultServer() as server:
        config = relay(server, ca_file=str(path))
        path.write_text("no certificate\n")
        assert "`ca_file` cannot be used: " in str(failure_with(config))
        path.unlink()
        error = failure_with(config)
        assert isinstance(error, TLSFailed)
        assert "ca.pem" in str(error)
        assert server.commands == []
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


# -- where TLS begins ------------------------------------------------------------------

BUSY = b"421 Too many connections from this IP address\r\n"
CLOSED = b"554-5.7.1 Your network is blocked\r\n554 5.7.1 Ask us why\r\n"


ALERT = b"\x15\x03\x03\x00\x02\x02\x50"  # fatal: internal_error
NO_TLS = "465 is implicit TLS|was followed by plaintext"


@TLS_MODES
@pytest.mark.parametrize(
    ("do", "kind", "code", "shown"),
    [
        # A refusal before the client's hello or behind it.
        (raw(BUSY, close=True), ConnectFailed, 421, "Too many"),
        (raw(CLOSED, close=True), ConnectFailed, 554, "5.7.1 Ask us why"),
        (raw(b"400\n", close=True), ConnectFailed, 400, ""),
        (trickle(BUSY, 0.002), ConnectFailed, 421, "Too many"),
        (chain(trickle(BUSY, 0.002), drop()), ConnectFailed, 421, "Too many"),
        (once_spoken_to(raw(BUSY, close=True)), ConnectFailed, 421, "Too many"),
        (once_spoken_to(raw(CLOSED)), ConnectFailed, 554, "5.7.1 Ask us why"),
        # Only a refusal counts.
        (raw(b"220 relay\r\n"), TLSFailed, 0, NO_TLS),
        (raw(b"250 AUTH PLAIN\r\n"), TLSFailed, 0, NO_TLS),
        (once_spoken_to(raw(b"220 relay\r\n")), TLSFailed, 0, NO_TLS),
        (once_spoken_to(raw(b"354 go\r\n")), TLSFailed, 0, NO_TLS),
        # A broken handshake, or a broken refusal.
        (once_spoken_to(drop()), ConnectFailed, 0, "closed the connection"),
        (once_spoken_to(drop(rst=True)), ConnectFailed, 0, "reset"),
        (once_spoken_to(hang()), ConnectFailed, 0, "timed out"),
        (once_spoken_to(raw(b"junk\r\n" * 9)), ConnectFailed, 0, ""),
        (once_spoken_to(raw(ALERT)), ConnectFailed, 0, ""),
        (once_spoken_to(raw(b"421 cut", close=True)), ConnectFailed, 0, "closed"),
        (once_spoken_to(raw(b"4 is none\r\n")), ConnectFailed, 0, "not an SMTP reply"),
        (once_spoken_to(raw(b"421-more\r\n" * 101)), ConnectFailed, 0, "more than"),
    ],
    ids=[
        *("busy", "closed", "no text", "octets", "octets, closed"),
        *("busy, late", "closed, late", "220", "250", "220, late", "354, late"),
        *("fin", "rst", "hang", "junk", "alert", "cut off", "no reply", "endless"),
    ],
)
def test_only_a_refusal_counts_in_clear_where_tls_should_begin(
    do: Action, kind: type[ConnectFailed | TLSFailed], code: int, shown: str, tls: str
) -> None:
    script = [On("tls", do=do)]
    with FaultServer(script, tls=tls) as server, in_clear_only(server):
        error = failure(server, timeout=SHORT if shown == "timed out" else 10)
    assert isinstance(error, kind)
    assert (error.smtp_code, error.transient) == (code, True)
    assert re.search(shown, str(error))
    if code:
        assert error.step == ("greeting" if tls == "implicit" else "STARTTLS")
    elif isinstance(error, ConnectFailed):
        assert error.phase is Phase.TLS


# -- STARTTLS --------------------------------------------------------------------------


def test_only_ehlo_and_starttls_are_sent_in_clear() -> None:
    with FaultServer(tls="starttls") as server, session(server) as held:
        held.send(transaction())
        # The server notes input behind STARTTLS, and refuses AUTH and MAIL in clear.
        assert server.violations == []
        verbs = [line.split()[0] for _, line in server.commands]
        assert verbs[:4] == [b"EHLO", b"STARTTLS", b"EHLO", b"AUTH"]


READY = b"220 2.0.0 Ready to start TLS\r\n"
EVIL = b"250-evil\r\n250 AUTH LOGIN\r\n"


@pytest.mark.parametrize(
    ("step", "do", "kind", "code", "shown"),
    [
        ("ehlo", reply(250, "relay\nAUTH PLAIN"), TLSFailed, 0, "is not offered"),
        ("ehlo", reply(500), TLSFailed, 0, "is not offered (EHLO was refused: 500"),
        ("ehlo", reply(502), TLSFailed, 0, "is not offered (EHLO was refused: 502"),
        ("starttls", reply(250), TLSFailed, 0, "was refused (250"),
        ("starttls", reply(500), TLSFailed, 0, "was refused (500"),
        ("starttls", reply(400), ConnectFailed, 400, "was refused: 400"),
        ("starttls", reply(454), ConnectFailed, 454, "was refused: 454"),
        # Plaintext in the segment of the reply is not read as TLS.
        ("starttls", raw(READY + EVIL), TLSFailed, 0, "was followed by plaintext"),
        ("starttls", raw(READY + BUSY), ConnectFailed, 421, "was refused: 421"),
        ("starttls", raw(READY + b"junk\r\n"), ConnectFailed, 0, "not an SMTP reply"),
    ],
    ids=[
        "none",
        "ehlo-500",
        "ehlo-502",
        "250",
        "500",
        "400",
        "454",
        "plaintext",
        "busy",
        "junk",
    ],
)
def test_without_starttls_there_is_no_login(
    step: Any, do: Action, kind: type[ConnectFailed | TLSFailed], code: int, shown: str
) -> None:
    script = [On(step, do=do)]
    with FaultServer(script, tls="starttls") as server, in_clear_only(server):
        error = failure(server)
    assert isinstance(error, kind)
    assert (error.step, error.smtp_code, error.transient) == ("STARTTLS", code, True)
    assert shown in str(error)
    if isinstance(error, ConnectFailed):
        assert error.phase is Phase.TLS
    else:
        assert "security='tls' is safer" in str(error)


@pytest.mark.parametrize(
    ("first", "then", "code"),
    [
        (reply(550, "5.7.1 client host blocked"), normal, 550),
        (reply(250, "relay\nSTARTTLS"), reply(502), 502),
    ],
    ids=["blocked", "502 under TLS"],
)
def test_another_refusal_at_ehlo_does_not_say_that_starttls_is_missing(
    first: Action, then: Action, code: int
) -> None:
    script = [On("ehlo", times=1, do=first), On("ehlo", do=then)]
    with FaultServer(script, tls="starttls") as server, in_clear_only(server):
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert (error.step, error.smtp_code) == ("EHLO", code)
