"""`lettermint_relay`: what it prints, takes, saves and posts, and how it ends."""

from __future__ import annotations

import io
import shutil
import signal
import smtplib
import socket
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings
from lettermint import Webhook

from django_lettermint.message import LettermintMessage
from django_lettermint.testing import command as relay_command
from tests.testing.receiving import SECRET, receiving
from tests.testing.relay_client import WRONG, client, send
from tests.testing.relay_command import Served, serve

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = "plaintext"


def mail(relay: Served) -> None:
    send(relay, security=PLAIN)


def mailing(content: bytes) -> Any:
    """Return what sends a message that is taken."""
    return lambda relay: send(relay, content, security=PLAIN)


# What it prints


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_settings_and_each_mail_and_ends_by_a_signal(number: int) -> None:
    def act(relay: Served) -> None:
        style = "MAILERS" if django.VERSION >= (6, 1) else "EMAIL_BACKEND"
        assert style in relay.settings
        with override_settings(**relay.settings):
            LettermintMessage(
                "Your order",
                "Sent.",
                "shop@example.com",
                ["ada@example.com"],
                bcc=["bob@example.com"],
                route="outgoing",
                tag="order shipped",
                metadata={"order_id": 4711},
            ).send()
        with urllib.request.urlopen(relay.inbox, timeout=10) as page:
            assert "Your order" in page.read().decode()

    relay = serve(act=act, number=number)
    assert "Your order\n" in relay.output
    assert "from:     shop@example.com\n" in relay.output
    assert "to:       ada@example.com, bob@example.com\n" in relay.output
    assert "route:    outgoing\n" in relay.output
    assert "tag:      order shipped\n" in relay.output
    assert "order_id=4711" in relay.output
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", relay.port(PLAIN)), timeout=10)


def test_a_thread_can_serve_although_it_may_set_no_signal_handlers() -> None:
    def leave(relay: Served) -> None:
        raise LookupError

    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(serve, act=leave)
    assert isinstance(serving.exception(), LookupError)


def test_what_is_refused_is_printed_with_the_reply_but_no_token() -> None:
    def act(relay: Served) -> None:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client(relay, PLAIN, token="lm_wrong")
        with client(relay, PLAIN) as connection:
            connection.mail("shop@example.com")
            assert connection.rcpt("a=b@example.com")[0] == 550
            assert connection.rcpt("later@example.com")[0] == 450
        with pytest.raises(smtplib.SMTPDataError):
            send(relay, WRONG, security=PLAIN)

    options = ("--refuse", "a=b@example.com", "--refuse", "later@example.com=450")
    shown = serve("--no-inbox", *options, act=act).output
    assert "REFUSED AUTH: 535" in shown
    assert "use the token of the settings above" in shown
    assert "lm_wrong" not in shown
    assert "REFUSED RCPT a=b@example.com: 550 5.1.1 No such mailbox\n" in shown
    assert "REFUSED RCPT later@example.com: 450 4.2.1" in shown
    message = shown.partition("REFUSED DATA: 550 5.6.0 The tag is invalid\n")[2]
    assert "to:       user@example.com\n" in message
    assert "subject:  Hi\n" in message


def test_a_mail_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    subject = b"Subject: \x1b[2J=?utf-8?q?=C2=9B=0Agr=C3=BC=C3=9Fe?=\r\n\r\n"
    relay = serve("--no-inbox", act=mailing(subject))
    assert relay.inbox == ""
    assert "gr\\xfc\\xdfe" in relay.output
    assert "\x1b" not in relay.output
    assert "\x9b" not in relay.output


def test_a_line_that_is_very_long_is_cut() -> None:
    long = b"X-LM-Metadata-k: " + b"v" * 900 + b"\r\n\r\n"
    shown = serve(act=mailing(long)).output.splitlines()
    assert (len(shown[-1]), shown[-1][-4:]) == (303, "v...")
    assert "(no subject)" in "".join(shown)


# What it does


def test_with_tls_the_settings_hold_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "ca"
    options = ("--tls", "--no-inbox", "--ca-folder", str(folder))
    first = serve(*options)
    port = str(first.port("tls"))
    second = serve(*options, "--port", port, act=send)
    assert second.settings == first.settings
    assert "user@example.com" in second.output
    kept = sorted(folder.iterdir())
    assert [path.name for path in kept] == ["ca.pem", "server.pem"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


def test_mails_are_saved_octet_for_octet(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "mails"
    content = b"Subject: =?utf-8?q?gr=C3=BC?=\r\n\r\n\xc3\xbc\r\n.dot\r\n"
    options = ("--no-inbox", "--save", str(folder))
    shown = serve(*options, act=mailing(content)).output
    (path,) = folder.iterdir()
    assert f"saved as {path}\n" in shown
    assert path.suffix == ".eml"
    assert path.read_bytes() == content


def test_a_mail_that_cannot_be_saved_is_printed_as_such(tmp_path: Path) -> None:
    def act(relay: Served) -> None:
        shutil.rmtree(tmp_path / "mails")
        mail(relay)

    options = ("--no-inbox", "--save", str(tmp_path / "mails"))
    assert "NOT SAVED" in serve(*options, act=act).output


def test_a_reply_can_be_delayed() -> None:
    def act(relay: Served) -> None:
        started = time.monotonic()
        mail(relay)
        assert time.monotonic() - started >= 0.2

    serve("--no-inbox", "--reply-delay", "0.2", act=act)


def test_webhooks_follow_each_mail_and_their_secret_is_printed_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LETTERMINT_SIGNING_SECRET", SECRET)
    address = "hardbounce@testing.lettermint.co"

    def act(relay: Served) -> None:
        send(relay, to=address, security=PLAIN)

    with receiving() as receiver:
        shown = serve(
            "--webhook", receiver.url, act=act, until="webhook message.hard_bounced"
        ).output
    assert "webhook message.created for all recipients: 200\n" in shown
    assert f"webhook message.hard_bounced for {address}: 200\n" in shown
    assert "import os\n" in shown
    assert 'os.environ["LETTERMINT_SIGNING_SECRET"]' in shown
    assert SECRET not in shown
    for headers, body in receiver.requests:
        Webhook(SECRET).verify(body, headers)
    assert len(receiver.requests) == 3


def test_a_site_that_does_not_answer_its_webhooks_is_named() -> None:
    with receiving() as gone:
        pass
    options = ("--no-inbox", "--webhook", gone.url, "--secret", SECRET)
    assert "no answer ([Errno" in serve(*options, act=mail, until="no answer (").output


# What it refuses to do


def failure(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[object, str]:
    """Start a relay that cannot run; return its exit code and what it prints."""
    with pytest.raises(SystemExit) as caught:
        relay_command.main([*options])
    printed = capsys.readouterr()
    assert not printed.out, "settings of a relay that does not run"
    return caught.value.code, printed.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--port", "65536"), "'65536' is not a port"),
        (("--reply-delay", "nan"), "'nan' is not a number of seconds"),
        (("--webhook", "localhost/hook"), "is not an http:// or https:// address"),
        (("--refuse", "nobody"), "'nobody' is not ADDRESS or ADDRESS=CODE"),
        (("--refuse", "a@example.com=250"), "with a code from 400 to 599"),
        (("--refuse", "a@example.com=600"), "with a code from 400 to 599"),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(
    arguments: tuple[str, str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = failure(capsys, *arguments)
    assert code == 2
    assert complaint in text


@pytest.mark.parametrize("option", ["--port", "--inbox-port"])
def test_a_port_that_is_taken_is_an_error_that_names_the_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, text = failure(capsys, "--port", "0", option, port)
        with pytest.raises(CommandError, match=f"port {port} .* with {option}.$"):
            call_command("lettermint_relay", "--port", "0", option, port)
    assert code == 1
    assert f"port {port} of 127.0.0.1 is in use" in text
    assert text.endswith(f"choose another port with {option}.\n")


@pytest.mark.parametrize(
    ("options", "content"),
    [
        (("--no-inbox", "--save"), "a file"),
        (("--tls", "--ca-folder"), "a file"),
        (("--tls", "--ca-folder"), "broken certificates"),
    ],
)
def test_a_folder_that_is_no_use_is_an_error_that_names_the_option(
    options: tuple[str, str],
    content: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    if content == "a file":
        folder.touch()
    else:
        folder.mkdir()
        for name in ("ca.pem", "server.pem"):
            (folder / name).write_text("broken")
    code, text = failure(capsys, "--port", "0", *options, str(folder))
    assert code == 1
    assert options[1] in text


def test_webhooks_need_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LETTERMINT_SIGNING_SECRET", raising=False)
    code, text = failure(capsys, "--port", "0", "--webhook", "http://127.0.0.1:8000/")
    assert code == 1
    assert "--webhook needs a secret: set LETTERMINT_SIGNING_SECRET" in text
