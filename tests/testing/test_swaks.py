"""The command of Lettermint's own page, by an independent client.

https://lettermint.co/docs/guides/send-email-with-smtp, "Testing Your Configuration".
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

pytestmark = pytest.mark.external


def test_the_documented_command_is_accepted_and_read(relay: Relay) -> None:
    program = shutil.which("swaks")
    assert program, "swaks is missing: apt-get install swaks (.ci/debian-packages.txt)"
    done = subprocess.run(
        [
            program,
            *("--to", "recipient@example.com"),
            *("--from", "sender@yourdomain.com"),
            *("--server", f"127.0.0.1:{relay.port('starttls')}"),
            *("--auth", "LOGIN"),
            *("--auth-user", "lettermint"),
            *("--auth-password", relay.token),
            "--tls",
            *("--header", "Subject: SMTP Test"),
            *("--header", "X-Lettermint-Route: your-route-slug"),
            *("--header", "X-LM-Tag: test-email"),
            *("--header", "X-LM-Metadata-source: swaks-test"),
            *("--body", "This is a test email via SMTP."),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (message,) = relay.messages
    assert message.mail_from == "sender@yourdomain.com"
    assert message.recipients == ("recipient@example.com",)
    assert (message.route, message.tag) == ("your-route-slug", "test-email")
    assert message.metadata == {"source": "swaks-test"}
    assert message.security == "starttls"
    assert message.mime["Subject"] == "SMTP Test"
    assert message.mime.get_content().strip() == "This is a test email via SMTP."
