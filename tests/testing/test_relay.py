"""The local relay, seen by smtplib: connections, logins, limits, life."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from django_lettermint.testing import Relay
from tests.testing.relay_client import MESSAGE, anonymous, client, send, trust

if TYPE_CHECKING:
    from collections.abc import Iterator

both_ports = pytest.mark.parametrize("security", ["tls", "starttls"])


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as running:
        yield running


def handshake(relay: Relay, security: str) -> socket.socket:
    """Return a connection on which the TLS handshake comes next."""
    raw = socket.create_connection(("127.0.0.1", relay.port(security)), timeout=10)
    if security == "starttls":
        raw.recv(1000)
        raw.sendall(b"STARTTLS\r\n")
        raw.recv(1000)
    return raw


@both_ports
def test_a_message_arrives_as_it_was_sent(relay: Relay, security: str) -> None:
    content = MESSAGE + b".\r\n..two dots\r\nno newline"
    with client(relay, security) as connection:
        connection.sendmail("sender@example.com", ["a@example.com"], content)
    (message,) = relay.messages
    assert message.content == content + b"\r\n"
    assert message.mail_from == "sender@example.com"
    assert message.recipients == ("a@example.com",)
    assert message.security == security
    assert message.connection == 1
    assert message.headers["Subject"] == message.mime["Subject"] == "Hi"
    assert message.mime.get_content().startswith("Hello.")


def test_options_and_settings_lead_to_the_relay(relay: Relay) -> None:
    options = relay.options("starttls", timeout=3)
    assert options == {
        "api_token": "lm_test_token",
        "host": "127.0.0.1",
        "port": relay.port("starttls"),
        "security": "starttls",
        "ca_file": relay.ca_file,
        "idempotency": True,
        "timeout": 3,
    }
    assert relay.settings()["LETTERMINT_PORT"] == relay.port("tls")


def test_starttls_comes_first_and_auth_is_offered_after_it(relay: Relay) -> None:
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
    with socket.create_connection(
        ("127.0.0.1", relay.port("starttls")), timeout=10
    ) as raw:
        raw.recv(1000)
        raw.sendall(b"STARTTLS\r\nEHLO injected\r\n")
        assert raw.recv(1000).startswith(b"220 ")
        with trust(relay).wrap_socket(raw, server_hostname="localhost") as secured:
            secured.sendall(b"NOOP\r\n")
            assert secured.recv(1000) == b"250 2.0.0 At your service\r\n"


def test_the_features_are_those_of_the_documents(relay: Relay) -> None:
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
    without = {"8BITMIME", "STARTTLS", "PIPELINING"}
    with Relay(chunking=True, limits="MAILMAX=5", without=without) as relay:
        with smtplib.SMTP("localhost", relay.port("starttls"), timeout=10) as plain:
            plain.ehlo()
            assert not plain.has_extn("starttls")
            assert plain.docmd("STARTTLS")[0] == 503
        with client(relay) as connection:
            features = connection.esmtp_features
            assert features["limits"] == "MAILMAX=5"
            assert "chunking" in features
            assert not {"8bitmime", "pipelining"} & features.keys()
            assert connection.mail("a@example.com", ["BODY=8BITMIME"])[0] == 555


def test_a_feature_that_does_not_exist_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="DSN: no such EHLO keyword"):
        Relay(without={"DSN"})


def test_a_second_token_is_as_good_and_is_remembered() -> None:
    with Relay(other_tokens=["lm_other"]) as relay:
        with client(relay, token="lm_other") as connection:
            connection.sendmail("a@example.com", ["b@example.com"], MESSAGE)
        assert relay.messages[0].token == "lm_other"
        assert "lm_other" not in repr(relay.messages)


@both_ports
def test_a_client_that_distrusts_the_certificate_leaves_nothing_behind(
    relay: Relay, security: str
) -> None:
    with handshake(relay, security) as raw, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")
    relay.wait_until(lambda now: now.open == 0)
    send(relay)
    assert len(relay.messages) == 1


def test_the_51st_recipient_is_refused(relay: Relay) -> None:
    recipients = [f"user{number}@example.com" for number in range(51)]
    with client(relay) as connection:
        refused = connection.sendmail("a@example.com", recipients, MESSAGE)
    assert list(refused) == ["user50@example.com"]
    assert refused["user50@example.com"][0] == 452
    assert refused["user50@example.com"][1].startswith(b"4.5.3 ")
    assert relay.messages[0].recipients == tuple(recipients[:50])
    assert relay.statistics.recipients == 50
    assert relay.statistics.refused_recipients == 1


def test_a_size_above_25_mb_is_refused_at_mail(relay: Relay) -> None:
    with client(relay) as connection:
        code, text = connection.mail("a@example.com", ["SIZE=26214401"])
    assert code == 552
    assert text.startswith(b"5.3.4 ")


def test_recipients_and_senders_can_be_refused_by_script(relay: Relay) -> None:
    relay.refuse("No@example.com")
    relay.refuse("later@example.com", 450, "4.2.1 Not now")
    relay.refuse("sender@example.com", 550, "5.7.1 Not verified", verb="MAIL")
    with client(relay) as connection:
        assert connection.mail("sender@example.com") == (550, b"5.7.1 Not verified")
        connection.mail("other@example.com")
        assert connection.rcpt("no@example.com")[0] == 550
        assert connection.rcpt("later@example.com") == (450, b"4.2.1 Not now")
        relay.accept("no@example.com")
        assert connection.rcpt("no@example.com")[0] == 250


def test_a_non_ascii_address_needs_smtputf8(relay: Relay) -> None:
    with client(relay) as connection:
        connection.command_encoding = "utf-8"
        assert connection.mail("å@example.com")[0] == 553
        connection.mail("å@example.com", ["SMTPUTF8", "BODY=8BITMIME"])
        connection.rcpt("ö@example.com")
        connection.data(MESSAGE)
    (message,) = relay.messages
    assert message.smtputf8
    assert message.body_8bit
    assert message.recipients == ("ö@example.com",)


def test_a_quoted_local_part_is_understood(relay: Relay) -> None:
    send(relay, to='"a b"@example.com')
    assert relay.messages[0].recipients == ('"a b"@example.com',)


def test_waiting_ends_when_the_message_is_there(relay: Relay) -> None:
    sender = threading.Thread(target=send, args=[relay])
    sender.start()
    assert len(relay.wait_for(1)) == 1
    sender.join()
    with pytest.raises(TimeoutError):
        relay.wait_for(2, timeout=0.01)


def test_clear_forgets_messages_and_keeps_counting(relay: Relay) -> None:
    send(relay)
    relay.clear()
    assert relay.messages == []
    assert relay.statistics.messages == 1
    assert relay.statistics.octets == len(MESSAGE)


def test_messages_can_be_counted_without_keeping_them() -> None:
    with Relay(keep_messages=False) as relay:
        send(relay)
        assert relay.messages == []
        assert relay.statistics.messages == 1


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
    with Relay(idle_timeout=0.05) as relay:
        connection = client(relay)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.getreply()


def test_eight_clients_at_once_lose_nothing(relay: Relay) -> None:
    def work() -> None:
        with client(relay) as connection:
            for _ in range(5):
                connection.sendmail("a@example.com", ["b@example.com"], MESSAGE)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert relay.statistics.messages == len(relay.messages) == 40
    assert {message.connection for message in relay.messages} == set(range(1, 9))


def test_in_an_outage_nobody_gets_in_and_afterwards_the_ports_are_the_same(
    relay: Relay,
) -> None:
    with client(relay) as connection, relay.outage():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", relay.port("tls")), timeout=10)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.noop()
        connection.close()
    send(relay)


def test_a_relay_that_is_stopped_in_an_outage_stays_stopped(relay: Relay) -> None:
    with relay.outage():
        relay.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", relay.port("tls")), timeout=10)


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
        with pytest.raises(RuntimeError, match="runs already"):
            relay.start()
    assert not ca_file.exists()
    relay.start()
    assert relay.options() == options
    send(relay)
    relay.stop()
    assert len(relay.messages) == 2


def test_a_port_that_is_taken_meanwhile_is_an_error() -> None:
    relay = Relay()
    with relay:
        port = relay.port("tls")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="use"):
        relay.start()


@both_ports
def test_stopping_does_not_wait_for_an_unfinished_handshake(
    relay: Relay, security: str
) -> None:
    with handshake(relay, security) as raw:
        relay.stop()
        assert raw.recv(1000) == b""
