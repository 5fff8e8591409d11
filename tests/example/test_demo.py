"""The commands of the example project, each in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

PROJECT = Path(__file__).parents[2] / "example_project"


def run(
    script: str, *arguments: str, **environment: object
) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LETTERMINT_", "DJANGO_", "EXAMPLE_"))
    }
    return subprocess.run(
        [sys.executable, "-W", "error", str(PROJECT / script), *arguments],
        env=inherited | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_demo_shows_what_the_relay_read() -> None:
    demo = run("demo.py")

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "route outgoing, tag order shipped" in demo.stdout
    assert "metadata UserID = ada" in demo.stdout
    assert "part text/csv (invoice.csv)" in demo.stdout
    assert "message_failed: not_sent at rcpt, 550" in demo.stdout
    assert "connections opened 1," in demo.stdout


def test_with_a_token_the_demo_sends_to_the_test_addresses_only(relay: Relay) -> None:
    sender = "ada@her-domain.example"
    relay.refuse("hardbounce@testing.lettermint.co")

    demo = run("demo.py", **relay.settings(), LETTERMINT_FROM_EMAIL=sender)

    assert demo.returncode == 1
    assert "UNEXPECTED  signals ['message_failed']" in demo.stdout
    recipients = {who for mail in relay.messages for who in mail.recipients}
    assert {who.partition("@")[2] for who in recipients} == {"testing.lettermint.co"}
    assert {mail.mail_from for mail in relay.messages} == {sender}


def test_the_demo_fails_and_hides_a_token_that_is_wrong(relay: Relay) -> None:
    wrong = "lm_wrong_token"

    demo = run("demo.py", **relay.settings(api_token=wrong))

    assert demo.returncode == 1
    assert "LETTERMINT_API_TOKEN" in demo.stdout + demo.stderr
    assert wrong not in demo.stdout + demo.stderr


@pytest.mark.parametrize("port", ["70000", "busy"])
def test_a_port_that_cannot_be_used_is_named(port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = str(other.getsockname()[1]) if port == "busy" else port
        serve = run("serve.py", "--port", number)

    assert serve.returncode == 2
    assert f"--port {number} cannot be used" in serve.stderr
    assert "Traceback" not in serve.stderr


def test_the_project_has_its_migrations_and_passes_the_checks() -> None:
    manage = run(
        "manage.py",
        *("makemigrations", "--check"),
        LETTERMINT_API_TOKEN="lm_any_token",
        LETTERMINT_SIGNING_SECRET="whsec_any",
        EXAMPLE_DATABASE=":memory:",
    )

    assert (manage.returncode, manage.stderr) == (0, "")
    assert "No changes" in manage.stdout
