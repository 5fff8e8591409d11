"""No login without verified TLS, and nothing but EHLO and STARTTLS in clear."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import ConnectFailed, TLSFailed
from django_lettermint.results import Phase
from tests.certificates import KINDS, ca_file
from tests.faults import chain, once_spoken_to
from tests.faultserver import FaultServer, On, drop, hang, raw, reply, trickle
from tests.sending import SHORT, relay, session, transaction
from tests.smtp.helpers import connect_with, failure, failure_with, in_clear_only

if TYPE_CHECKING:
    from collections.abc import Callable
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


@TLS_MODES
@pytest.mark.parametrize(
    ("do", "code", "text"),
    [
        (raw(BUSY, close=True), 421, "Too many"),
        (raw(CLOSED, close=True), 554, "5.7.1 Ask us why"),
        (once_spoken_to(raw(BUSY, close=True)), 421, "Too many"),
        (once_spoken_to(raw(CLOSED)), 554, "5.7.1 Ask us why"),
        (chain(trickle(BUSY, 0.002), drop()), 421, "Too many"),
        (trickle(BUSY, 0.002), 421, "Too many"),
        (raw(b"400\n", close=True), 400, ""),
    ],
    ids=[
        *("before ClientHello", "before it, permanent"),
        *("after ClientHello", "after it, permanent and open"),
        *("octet by octet", "octet by octet, and open", "without text"),
    ],
)
def test_a_refusal_in_clear_where_tls_begins_is_a_refused_connection(
    do: Action, code: int, text: str, tls: str
) -> None:
    with FaultServer([On("tls", do=do)], tls=tls) as server, in_clear_only(server):
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient) == (code, True)
    assert text in error.smtp_error.decode()
    assert error.step == ("greeting" if tls == "implicit" else "STARTTLS")


@TLS_MODES
@pytest.mark.parametrize("said", [b"220 relay\r\n", b"250 AUTH PLAIN\r\n", b"354 go\n"])
@pytest.mark.parametrize("wait", [raw, lambda said: once_spoken_to(raw(said))])
def test_no_reply_in_clear_but_a_refusal_counts_where_tls_begins(
    wait: Callable[[bytes], Action], said: bytes, tls: str
) -> None:
    script = [On("tls", do=wait(said))]
    with FaultServer(script, tls=tls) as server, in_clear_only(server):
        error = failure(server)
    assert isinstance(error, TLSFailed)
    assert error.smtp_code == 0
    assert "465 is implicit TLS" in str(error) or "followed by plaintext" in str(error)


@TLS_MODES
@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (drop(), "closed the connection"),
        (drop(rst=True), "reset"),
        (hang(), "timed out"),
        (raw(b"junk\r\n" * 9), ""),
        (raw(b"\x15\x03\x03\x00\x02\x02\x50"), ""),  # a fatal alert: internal_error
        # Refusals that are broken.
        (raw(b"421 cut of", close=True), "closed the connection"),
        (raw(b"4 is no reply\r\n"), "not an SMTP reply"),
        (raw(b"421-more\r\n" * 101), "more than"),
    ],
    ids=["fin", "rst", "hang", "junk", "alert", "cut-off", "no-reply", "endless"],
)
def test_a_broken_handshake_is_a_failed_connection(
    do: Action, reason: str, tls: str
) -> None:
    script = [On("tls", do=once_spoken_to(do))]
    with FaultServer(script, tls=tls) as server, in_clear_only(server):
        error = failure(server, timeout=SHORT)
    assert isinstance(error, ConnectFailed)
    assert (error.smtp_code, error.transient, error.phase) == (0, True, Phase.TLS)
    assert reason in str(error)


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
    ("step", "do", "shown"),
    [
        ("ehlo", reply(250, "relay\nAUTH PLAIN"), "is not offered"),
        ("ehlo", reply(500), "is not offered (EHLO was refused: 500"),
        ("starttls", reply(250), "was refused (250"),
        ("starttls", reply(500), "was refused (500"),
        # Plaintext in the segment of the reply is not read as TLS.
        ("starttls", raw(READY + EVIL), "was followed by plaintext"),
    ],
)
def test_without_starttls_there_is_no_login(step: Any, do: Action, shown: str) -> None:
    script = [On(step, do=do)]
    with FaultServer(script, tls="starttls") as server, in_clear_only(server):
        error = failure(server)
    assert isinstance(error, TLSFailed)
    assert (error.step, error.transient) == ("STARTTLS", True)
    assert shown in str(error)
    assert "security='tls' is safer" in str(error)


@pytest.mark.parametrize(
    ("do", "code"),
    [
        (reply(400), 400),
        (reply(454), 454),
        (raw(READY + BUSY), 421),
        (raw(READY + b"junk\r\n"), 0),
    ],
    ids=["400", "454", "refused", "junk"],
)
def test_starttls_that_is_put_off_is_a_failed_connection(do: Action, code: int) -> None:
    script = [On("starttls", do=do)]
    with FaultServer(script, tls="starttls") as server, in_clear_only(server):
        error = failure(server)
    assert isinstance(error, ConnectFailed)
    assert (error.step, error.phase) == ("STARTTLS", Phase.TLS)
    assert (error.smtp_code, error.transient) == (code, True)
