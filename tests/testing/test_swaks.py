"""The command of Lettermint's own page, by a client that nobody here wrote.

https://lettermint.co/docs/guides/send-email-with-smtp, "Testing Your Configuration".
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from django_lettermint.testing import Logins, Relay

pytestmark = pytest.mark.external


def swaks(
    relay: Relay, *changes: str, tls: str = "--tls"
) -> subprocess.CompletedProcess[str]:
    program = shutil.which("swaks")
    assert program, "swaks is missing: apt-get install swaks (.ci/debian-packages.txt)"
    command = [
        program,
        *("--to", "recipient@example.com"),
        *("--from", "sender@yourdomain.com"),
        *("--server", f"127.0.0.1:{relay.port('starttls')}"),
        *("--auth", "LOGIN"),
        *("--auth-user", "lettermint"),
        *("--auth-password", relay.token),
        tls,
        *("--header", "Subject: SMTP Test"),
        *("--header", "X-Lettermint-Route: your-route-slug"),
        *("--header", "X-LM-Tag: test-email"),
        *("--header", "X-LM-Metadata-source: swaks-test"),
        *("--body", "This is a test email via SMTP."),
        *changes,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_documented_command_is_accepted_and_read() -> None:
    with Relay() as relay:
        done = swaks(relay)
        assert done.returncode == 0, done.stdout + done.stderr
        (message,) = relay.messages
        assert relay.logins == Logins(attempts=1, successes=1)
    assert message.mail_from == "sender@yourdomain.com"
    assert message.recipients == ("recipient@example.com",)
    assert message.route == "your-route-slug"
    assert message.tag == "test-email"
    assert message.metadata == {"source": "swaks-test"}
    assert message.security == "starttls"
    assert message.mime["Subject"] == "SMTP Test"
    assert message.mime.get_content().strip() == "This is a test email via SMTP."


@pytest.mark.parametrize("mechanism", ["PLAIN", "CRAM-MD5"])
def test_the_other_mechanisms_and_implicit_tls_work_too(mechanism: str) -> None:
    with Relay() as relay:
        server = f"127.0.0.1:{relay.port('tls')}"
        done = swaks(
            relay, "--server", server, "--auth", mechanism, tls="--tls-on-connect"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert relay.messages[0].security == "tls"


def test_the_documented_command_with_a_wrong_token_is_refused() -> None:
    with Relay() as relay:
        done = swaks(relay, "--auth-password", "your-api-key")
        assert done.returncode != 0
        assert "535 5.7.8" in done.stdout
        assert relay.messages == []
