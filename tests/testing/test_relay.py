"""The local relay: how it is reached, what it keeps, how it starts and ends."""

from __future__ import annotations

import smtplib
import socket
import ssl
import tempfile
import threading
from pathlib import Path

import pytest

from django_lettermint.testing import Logins, Relay
from tests.testing.relay_client import MESSAGE, WRONG, anonymous, client, send, trust

both_ports = pytest.mark.parametrize("security", ["tls", "starttls"])


def connect(relay: Relay, security: str = "tls") -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port(security)), timeout=10)


def handshake(relay: Relay, security: str) -> socket.socket:
    """Return a connection on which the TLS handshake comes next."""
    raw = connect(relay, security)
    if security == "starttls":
        raw.recv(1000)
        raw.sendall(b"STARTTLS\r\n")
        raw.recv(1000)
    return raw


# What arrives


@both_ports
def test_a_message_arrives_as_it_was_sent(relay: Relay, security: str) -> None:
    content = MESSAGE + b".\r\n..two dots\r\nno newline"
    send(relay, content, to=("a@example.com", "b@example.com"), security=security)
    (message,) = relay.messages
    assert message.content == content + b"\r\n"
    assert message.mail_from == "sender@example.com"
    assert message.recipients == ("a@example.com", "b@example.com")
    assert (message.security, message.connection) == (security, 1)
    assert message.tls.startswith("TLSv1.")
    assert message.headers["Subject"] == message.mime["Subject"] == "Hi"


def test_the_51st_recipient_is_refused(relay: Relay) -> None:
    recipients = [f"user{number}@example.com" for number in range(51)]
    with client(relay) as connection:
        refused = connection.sendmail("a@example.com", recipients, MESSAGE)
    ((address, (code, text)),) = refused.items()
    assert (address, code, text[:6]) == ("user50@example.com", 452, b"4.5.3 ")
    assert relay.messages[0].recipients == tuple(recipients[:50])
    assert relay.statistics.recipients == 50
    assert relay.statistics.refused_recipients == 1


def test_what_is_refused_is_kept_in_order_with_the_rule(relay: Relay) -> None:
    relay.refuse("No@example.com")
    relay.refuse("spam@example.com", 450, "4.7.1 Not now", verb="MAIL")
    with pytest.raises(smtplib.SMTPAuthenticationError):
        client(relay, token="lm_wrong")
    with client(relay) as connection:
        assert connection.mail("spam@example.com") == (450, b"4.7.1 Not now")
        connection.mail("sender@example.com")
        connection.rcpt("user@example.com")
        assert connection.rcpt("no@example.com") == (550, b"5.1.1 No such mailbox")
        assert connection.data(WRONG)[0] == 550
        relay.accept("no@example.com")
        connection.mail("sender@example.com")
        assert connection.rcpt("no@example.com")[0] == 250
    assert relay.messages == []
    *logins, sender, unknown, message = relay.refusals
    assert {each.command for each in logins} == {"AUTH"}
    assert "lm_wrong" not in repr(logins)
    assert (sender.command, sender.address) == ("MAIL", "spam@example.com")
    assert (unknown.command, unknown.address) == ("RCPT", "no@example.com")
    assert (unknown.recipients, unknown.content) == (("user@example.com",), b"")
    assert (message.command, message.code) == ("DATA", 550)
    assert message.text == "5.6.0 The tag is invalid"
    assert (message.content, message.headers["Subject"]) == (WRONG, "Hi")
    assert message.mail_from == "sender@example.com"
    assert message.recipients == ("user@example.com",)


def test_waiting_ends_when_the_message_is_there(relay: Relay) -> None:
    sender = threading.Thread(target=send, args=[relay])
    sender.start()
    assert len(relay.wait_for(1)) == 1
    sender.join()
    with pytest.raises(TimeoutError):
        relay.wait_for(2, timeout=0.01)


@pytest.mark.parametrize("keep", [True, False])
def test_records_that_are_not_kept_are_counted(*, keep: bool) -> None:
    with Relay(keep_messages=keep) as relay:
        send(relay)
        with pytest.raises(smtplib.SMTPDataError):
            send(relay, WRONG)
        assert (len(relay.messages), len(relay.refusals)) == (keep, keep)
        relay.clear()
        assert (relay.messages, relay.refusals) == ([], [])
        assert relay.statistics.messages == 1
        assert relay.statistics.octets == len(MESSAGE)


# How it is reached


def test_options_and_settings_lead_to_the_relay() -> None:
    with Relay(ports={"starttls": 0, "plaintext": 0}) as relay:
        in_clear = {
            "api_token": "lm_test_token",
            "host": "127.0.0.1",
            "port": relay.port("plaintext"),
            "security": "plaintext",
            "idempotency": True,
        }
        assert relay.options("plaintext") == in_clear
        assert relay.options("starttls", timeout=3) == in_clear | {
            "port": relay.port("starttls"),
            "security": "starttls",
            "ca_file": relay.ca_file,
            "timeout": 3,
        }
        settings = relay.settings("plaintext")
        assert settings["LETTERMINT_PORT"] == relay.port("plaintext")


def test_the_features_are_those_of_the_documentation(relay: Relay) -> None:
    with anonymous(relay) as connection:
        assert connection.esmtp_features == {
            "pipelining": "",
            "size": "26214400",
            "8bitmime": "",
            "smtputf8": "",
            "enhancedstatuscodes": "",
            "auth": " PLAIN LOGIN CRAM-MD5",
        }


def test_features_can_be_left_out_and_added() -> None:
    without = {"8BITMIME", "STARTTLS", "PIPELINING", "AUTH"}
    with Relay(chunking=True, limits="MAILMAX=5", without=without) as relay:
        with smtplib.SMTP("localhost", relay.port("starttls"), timeout=10) as plain:
            plain.ehlo()
            assert not plain.has_extn("starttls")
            assert plain.docmd("STARTTLS")[0] == 503
        with anonymous(relay) as connection:
            features = connection.esmtp_features
            assert connection.docmd("AUTH PLAIN")[0] == 504
    assert features.keys() == {
        *("size", "smtputf8", "enhancedstatuscodes", "chunking", "limits")
    }
    assert features["limits"] == "MAILMAX=5"
    with pytest.raises(ValueError, match="DSN: no such EHLO keyword"):
        Relay(without={"DSN"})


def test_what_is_not_offered_is_refused() -> None:
    with Relay(without={"8BITMIME"}) as relay, client(relay) as connection:
        assert connection.mail("a@example.com", ["BODY=8BITMIME"])[0] == 555
        assert connection.docmd("BDAT", "0 LAST")[0] == 500


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_each_mechanism_works_alone(mechanism: str) -> None:
    with Relay(mechanisms=[mechanism]) as relay:
        with client(relay) as connection:
            assert connection.esmtp_features["auth"].strip() == mechanism
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client(relay, token="wrong")
        assert refused.value.smtp_code == 535
        assert relay.logins == Logins(attempts=2, successes=1)


def test_tokens_of_one_project_share_its_idempotency_keys() -> None:
    keyed = b"Idempotency-Key: order-1\r\n" + MESSAGE
    with Relay(other_tokens=["lm_other"]) as relay:
        for token in ("lm_other", "lm_test_token"):
            with client(relay, token=token) as connection:
                connection.sendmail("sender@example.com", ["user@example.com"], keyed)
        (message,) = relay.messages
        assert relay.statistics.replays == 1
    assert message.token == "lm_other"
    assert "lm_other" not in repr(message)


# TLS


def test_no_login_and_no_mail_in_clear_where_starttls_is_offered(relay: Relay) -> None:
    with smtplib.SMTP("localhost", relay.port("starttls"), timeout=10) as connection:
        connection.ehlo()
        assert connection.has_extn("starttls")
        assert not connection.has_extn("auth")
        assert connection.mail("sender@example.com")[0] == 530
        assert connection.docmd("AUTH", "PLAIN AGEAYg==")[0] == 530
        assert connection.docmd("STARTTLS", "now")[0] == 501
        connection.starttls(context=trust(relay))
        connection.ehlo()
        assert not connection.has_extn("starttls")
        assert connection.has_extn("auth")
        assert connection.docmd("STARTTLS")[0] == 503


def test_commands_in_clear_behind_starttls_are_thrown_away(relay: Relay) -> None:
    with connect(relay, "starttls") as raw:
        raw.recv(1000)
        raw.sendall(b"STARTTLS\r\nEHLO injected\r\n")
        assert raw.recv(1000).startswith(b"220 ")
        with trust(relay).wrap_socket(raw, server_hostname="localhost") as secured:
            secured.sendall(b"NOOP\r\n")
            assert secured.recv(1000) == b"250 2.0.0 At your service\r\n"


@both_ports
def test_a_client_that_distrusts_the_certificate_leaves_nothing_behind(
    relay: Relay, security: str
) -> None:
    with handshake(relay, security) as raw, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    relay.wait_until(lambda now: now.open == 0)
    send(relay)
    assert len(relay.messages) == 1


# Connections, start and end


def test_connections_are_counted_and_can_be_cut(relay: Relay) -> None:
    first, second = client(relay), client(relay, "starttls")
    assert (relay.statistics.connections, relay.statistics.open) == (2, 2)
    relay.drop_connections()
    for connection in (first, second):
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.noop()
    send(relay)
    now = relay.wait_until(lambda now: now.open == 0)
    assert (now.connections, now.peak) == (3, 2)


def test_a_silent_connection_is_closed_after_the_idle_timeout() -> None:
    with Relay(idle_timeout=0.05) as relay, connect(relay) as raw:
        assert raw.recv(1000) == b""


def test_after_an_outage_the_relay_has_the_same_ports(relay: Relay) -> None:
    with client(relay) as connection, relay.outage():
        with pytest.raises(ConnectionRefusedError):
            connect(relay)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.noop()
        connection.close()
    send(relay)


def test_a_relay_that_is_stopped_in_an_outage_stays_stopped(relay: Relay) -> None:
    with relay.outage():
        relay.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(relay)


def test_a_stopped_relay_keeps_its_messages_and_starts_again_on_its_ports() -> None:
    relay = Relay()
    with pytest.raises(RuntimeError, match="never started"):
        _ = relay.ca_file
    with pytest.raises(RuntimeError, match="not running"):
        relay.drop_connections()
    relay.stop()
    with relay:
        ca_file, options = Path(relay.ca_file), relay.options()
        send(relay)
        with pytest.raises(RuntimeError, match="running already"):
            relay.start()
    assert not ca_file.exists()
    with relay:
        assert relay.options() == options
        send(relay)
    assert len(relay.messages) == 2


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        relay = Relay(ports={"tls": 0, "starttls": other.getsockname()[1]})
        with pytest.raises(OSError, match="use"):
            relay.start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_an_error_at_once(port: int) -> None:
    with pytest.raises(ValueError, match=f"ports: {port} is not a port"):
        Relay(ports={"plaintext": port})


@both_ports
def test_stopping_does_not_wait_for_a_handshake(relay: Relay, security: str) -> None:
    with handshake(relay, security) as raw:
        relay.stop()
        assert raw.recv(1000) == b""
