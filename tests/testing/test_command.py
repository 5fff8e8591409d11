"""`lettermint_relay`: what it prints, takes, saves and posts, and how it ends."""

from __future__ import annotations

import argparse
import http.server
import shutil
import signal
import smtplib
import socket
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.test import override_settings
from lettermint import Webhook

from django_lettermint.backend import EmailBackend
from django_lettermint.message import LettermintMessage
from django_lettermint.testing import command as relay_command
from tests.testing.relay_process import MODULE, RelayProcess, failure, relay_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from django.core.mail import EmailMessage

SECRET = "whsec_never_shown"
MANAGE = ("-m", "django", "lettermint_relay")
both_commands = pytest.mark.parametrize(
    "command", [MODULE, MANAGE], ids=["module", "manage.py"]
)


def options(relay: RelayProcess) -> dict[str, Any]:
    prefix = "LETTERMINT_"
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in relay.settings.items()
        if name.startswith(prefix) and value
    }


def send(relay: RelayProcess, **fields: Any) -> EmailMessage:
    message = LettermintMessage(
        **{
            "subject": "Your order",
            "body": "Sent.",
            "from_email": "shop@example.com",
            "to": ["ada@example.com"],
            **fields,
        }
    )
    EmailBackend(**options(relay), pool=False).send_messages([message])
    return message


def client(relay: RelayProcess) -> smtplib.SMTP:
    """Return a client that knows no rule of Lettermint."""
    connection = smtplib.SMTP("127.0.0.1", relay.settings["LETTERMINT_PORT"], "me", 10)
    connection.login("lettermint", "lm_test_token")
    return connection


@both_commands
def test_it_prints_settings_and_each_mail_that_they_bring(
    command: tuple[str, ...],
) -> None:
    with relay_process(command=command) as relay:
        settings = relay.settings
        style = "MAILERS" if django.VERSION >= (6, 1) else "EMAIL_BACKEND"
        assert style in settings
        assert settings["LETTERMINT_SECURITY"] == "plaintext"
        with override_settings(**settings):
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
        shown = relay.read_until("metadata:")
        assert "Your order" in shown
        assert "from:     shop@example.com\n" in shown
        assert "to:       ada@example.com, bob@example.com\n" in shown
        assert "route:    outgoing\n" in shown
        assert "tag:      order shipped\n" in shown
        assert "order_id=4711" in shown
        relay.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@both_commands
def test_a_signal_ends_it_in_good_order(command: tuple[str, ...], number: int) -> None:
    with relay_process(command=command) as relay:
        port = relay.settings["LETTERMINT_PORT"]
        with client(relay):
            relay.end(number)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)


def test_the_inbox_shows_the_mail_unless_it_is_not_wanted() -> None:
    with relay_process() as relay:
        send(relay, subject="Seen in the inbox")
        relay.read_until("Seen in the inbox")
        with urllib.request.urlopen(relay.inbox, timeout=10) as page:
            assert "Seen in the inbox" in page.read().decode()
        relay.end()
    with relay_process("--no-inbox") as relay:
        assert "Inbox" not in relay.output


def test_with_tls_the_settings_hold_after_a_restart(tmp_path: Path) -> None:
    arguments = ("--tls", "--no-inbox", "--ca-folder", str(tmp_path / "new" / "ca"))
    with relay_process(*arguments) as relay:
        before = relay.settings
        assert before["LETTERMINT_SECURITY"] == "tls"
        relay.end()
    port = str(before["LETTERMINT_PORT"])
    with relay_process(*arguments, "--port", port) as relay:
        assert relay.settings == before
        send(relay)
        relay.read_until("Your order")
    kept = sorted((tmp_path / "new" / "ca").iterdir())
    assert [path.name for path in kept] == ["ca.pem", "server.pem"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


@both_commands
@pytest.mark.parametrize("option", ["--port", "--inbox-port"])
def test_a_port_that_is_taken_is_told_with_the_option_that_helps(
    command: tuple[str, ...], option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, text = failure(option, port, command=command)
    assert code == 1
    assert f"port {port} of 127.0.0.1 is in use" in text
    assert text.endswith(f"choose another port with {option}.\n")


def test_a_folder_for_certificates_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, text = failure("--tls", "--ca-folder", str(tmp_path / "file"))
    assert code == 1
    assert "another folder with --ca-folder" in text


def test_certificates_that_are_broken_are_told(tmp_path: Path) -> None:
    for name in ("ca.pem", "server.pem"):
        (tmp_path / name).write_text("broken")
    code, text = failure("--tls", "--ca-folder", str(tmp_path))
    assert code == 1
    assert "another folder with --ca-folder" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--port", "65536"), "'65536' is not a port"),
        (("--inbox-port", "-1"), "'-1' is not a port"),
        (("--reply-delay", "-1"), "'-1' is not a number of seconds"),
        (("--reply-delay", "nan"), "'nan' is not a number of seconds"),
        (("--webhook", "localhost/hook"), "is not an http:// or https:// address"),
        (("--refuse", "nobody"), "'nobody' is not ADDRESS or ADDRESS=CODE"),
        (("--refuse", "a@example.com=250"), "with a code from 400 to 599"),
        (("--refuse", "a@example.com="), "with a code from 400 to 599"),
    ],
)
def test_an_option_that_makes_no_sense_is_told(
    arguments: tuple[str, str], complaint: str
) -> None:
    code, text = failure(*arguments)
    assert code == 2
    assert complaint in text


def test_it_refuses_addresses_and_says_so() -> None:
    refused = ("--refuse", "a=b@example.com", "--refuse", "later@example.com=450")
    with relay_process("--no-inbox", *refused) as relay:
        with (
            client(relay) as connection,
            pytest.raises(smtplib.SMTPRecipientsRefused) as caught,
        ):
            connection.sendmail(
                "shop@example.com", ["a=b@example.com", "later@example.com"], ""
            )
        codes = {who: code for who, (code, _) in caught.value.recipients.items()}
        assert codes == {"a=b@example.com": 550, "later@example.com": 450}
        shown = relay.read_until("450")
    assert "REFUSED RCPT a=b@example.com: 550 5.1.1 No such mailbox\n" in shown
    assert "REFUSED RCPT later@example.com: 450 4.2.1" in shown
    assert "from:     shop@example.com\n" in shown


def test_a_broken_rule_is_shown_with_its_text() -> None:
    with relay_process("--no-inbox") as relay:
        with client(relay) as connection, pytest.raises(smtplib.SMTPDataError):
            connection.sendmail(
                "shop@example.com",
                ["ada@example.com"],
                "Subject: Your order\r\nX-LM-Tag: order@shipped\r\n\r\n",
            )
        shown = relay.read_until("subject:")
    assert "REFUSED DATA: 550 5.6.0 The tag is invalid\n" in shown
    assert "to:       ada@example.com\n" in shown
    assert "subject:  Your order\n" in shown


def test_a_wrong_token_is_shown_with_what_helps() -> None:
    with relay_process("--no-inbox") as relay:
        port = relay.settings["LETTERMINT_PORT"]
        with smtplib.SMTP("127.0.0.1", port, "me", 10) as connection:
            connection.ehlo()
            connection.user, connection.password = "lettermint", "lm_wrong"
            with pytest.raises(smtplib.SMTPAuthenticationError):
                connection.auth("PLAIN", connection.auth_plain)
        shown = relay.read_until("use the token of the settings above")
    assert "REFUSED AUTH: 535" in shown
    assert "lm_wrong" not in shown


def test_mails_are_saved_octet_for_octet(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "mails"
    content = b"Subject: =?utf-8?q?gr=C3=BC?=\r\n\r\n\xc3\xbc\r\n.dot\r\n"
    with relay_process("--no-inbox", "--save", str(folder)) as relay:
        with client(relay) as connection:
            connection.sendmail("a@example.com", ["b@example.com"], content)
        shown = relay.read_until("saved as")
        (path,) = folder.iterdir()
        assert str(path) in shown
        assert path.suffix == ".eml"
        assert path.read_bytes() == content
        shutil.rmtree(folder)
        send(relay)
        relay.read_until("NOT SAVED")


def test_a_folder_for_mails_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, text = failure("--no-inbox", "--save", str(tmp_path / "file"))
    assert code == 1
    assert f"--save {tmp_path / 'file'}: " in text


def test_it_can_take_its_time() -> None:
    with relay_process("--no-inbox", "--reply-delay", "0.2") as relay:
        started = time.monotonic()
        send(relay)
        assert time.monotonic() - started >= 0.2


@contextmanager
def receiving() -> Iterator[tuple[str, list[Any]]]:
    """Verify and collect what is posted to a URL."""
    events: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            events.append(Webhook(SECRET).verify(body, dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", events
        finally:
            server.shutdown()
            thread.join()


def test_webhooks_follow_each_mail_and_their_secret_is_shown_nowhere() -> None:
    variables = {"LETTERMINT_SIGNING_SECRET": SECRET}
    with (
        receiving() as (url, events),
        relay_process("--webhook", url, variables=variables) as relay,
    ):
        assert "import os\n" in relay.output
        assert 'os.environ["LETTERMINT_SIGNING_SECRET"]' in relay.output
        send(relay, to=["hardbounce@testing.lettermint.co"])
        shown = relay.read_until("message.hard_bounced")
        relay.end()
    assert "webhook message.created for all recipients: 204\n" in shown
    assert "message.hard_bounced for hardbounce@testing.lettermint.co: 204\n" in shown
    assert SECRET not in relay.output
    assert [event["event"] for event in events] == [
        "message.created",
        "message.sent",
        "message.hard_bounced",
    ]


def test_a_site_that_does_not_answer_its_webhooks_is_told() -> None:
    with receiving() as (url, _):
        pass
    arguments = ("--no-inbox", "--webhook", url, "--secret", SECRET)
    with relay_process(*arguments) as relay:
        send(relay)
        shown = relay.read_until("no answer (")
        assert "no answer ([Errno" in shown
        relay.end()


@both_commands
def test_webhooks_need_a_secret(command: tuple[str, ...]) -> None:
    code, text = failure(
        "--webhook",
        "http://127.0.0.1:8000/hook",
        command=command,
        variables={"LETTERMINT_SIGNING_SECRET": ""},
    )
    assert code == 1
    assert "--webhook needs a secret: set LETTERMINT_SIGNING_SECRET" in text


def test_nothing_in_a_mail_can_write_to_the_terminal() -> None:
    with relay_process("--no-inbox", variables={"PYTHONIOENCODING": "ascii"}) as relay:
        with client(relay) as connection:
            connection.sendmail(
                "a@example.com",
                ["b@example.com"],
                "Subject: \x1b[2J=?utf-8?q?=C2=9B=0Agr=C3=BC=C3=9Fe?=\r\n\r\n",
            )
        shown = relay.read_until("to:")
    assert "gr\\xfc\\xdfe" in shown
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_a_line_that_is_very_long_is_cut() -> None:
    with relay_process("--no-inbox") as relay:
        send(relay, metadata={"k": "v " * 400 + "end"})
        shown = relay.read_until("metadata:")
    assert shown.splitlines()[-1].endswith("...")
    assert max(map(len, shown.splitlines())) < 400


def test_a_mail_without_subject_is_shown_as_such() -> None:
    with relay_process("--no-inbox") as relay:
        with client(relay) as connection:
            connection.sendmail("a@example.com", ["b@example.com"], "\r\nHi")
        relay.read_until("(no subject)")


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    monkeypatch.delitem(sys.modules, "django_lettermint.testing.relay", raising=False)
    monkeypatch.delitem(
        sys.modules,
        "django_lettermint.testing.certificates",
        raising=False,
    )
    with pytest.raises(SystemExit):
        relay_command.main(["--port", "0"])
    assert "pip install 'django-lettermint-smtp[testing]'" in capsys.readouterr().err


def test_a_thread_that_serves_leaves_signals_alone() -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    seen: list[Any] = []

    class Enough(Exception):
        pass

    def write(text: str) -> None:
        if text.startswith("Waiting"):
            seen.append(
                [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
            )
            raise Enough

    def serve() -> None:
        parser = argparse.ArgumentParser()
        relay_command.add_arguments(parser)
        with pytest.raises(Enough):
            relay_command.serve(
                parser.parse_args(["--port=0", "--inbox-port=0"]), write
            )

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert seen == [handlers]
