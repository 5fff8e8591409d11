"""The example project as a newcomer runs it, in processes of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

PROJECT = Path(__file__).parents[2] / "example_project"


def run_demo(**environment: object) -> subprocess.CompletedProcess[str]:
    return run("demo.py", **environment)


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
        timeout=50,
        check=False,
    )


def as_if_it_were_lettermint(relay: Relay, **overrides: Any) -> dict[str, object]:
    """Name a relay in the environment; the demo then starts none of its own."""
    return relay.settings(**overrides)


def test_the_demo_ends_well_and_shows_what_the_relay_read() -> None:
    demo = run_demo()

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "route outgoing, tag order shipped" in demo.stdout
    assert "metadata UserID = ada" in demo.stdout
    assert "| X-LM-Metadata-UserID: ada" in demo.stdout
    assert "part text/csv (invoice.csv)" in demo.stdout
    assert "message_failed: not_sent at rcpt, 550" in demo.stdout
    assert "connections opened 1," in demo.stdout


def test_the_demo_sends_to_the_test_addresses_when_it_has_a_token(
    lettermint_relay: Relay,
) -> None:
    demo = run_demo(
        **as_if_it_were_lettermint(lettermint_relay),
        LETTERMINT_FROM_EMAIL="ada@her-domain.example",
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    mails = lettermint_relay.messages
    assert len(mails) == 9
    recipients = {who for mail in mails for who in mail.recipients}
    assert {who.partition("@")[2] for who in recipients} == {"testing.lettermint.co"}
    assert {mail.mail_from for mail in mails} == {"ada@her-domain.example"}


def test_the_demo_fails_when_the_token_is_wrong(lettermint_relay: Relay) -> None:
    wrong = "lm_wrong_token"

    demo = run_demo(**as_if_it_were_lettermint(lettermint_relay, api_token=wrong))

    assert demo.returncode == 1
    assert "LETTERMINT_API_TOKEN" in demo.stdout + demo.stderr
    assert wrong not in demo.stdout + demo.stderr


def test_the_demo_fails_when_a_mail_is_refused(lettermint_relay: Relay) -> None:
    lettermint_relay.refuse("hardbounce@testing.lettermint.co")

    demo = run_demo(**as_if_it_were_lettermint(lettermint_relay))

    assert demo.returncode == 1
    assert "UNEXPECTED  signals ['message_failed']" in demo.stdout


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_the_site_says_that_a_port_is_no_use(port: str) -> None:
    serve = run("serve.py", "--port", port)

    assert serve.returncode == 2
    assert f"--port {port} is no use" in serve.stderr
    assert "Traceback" not in serve.stderr


def test_the_site_says_that_a_port_is_busy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        serve = run("serve.py", "--port", port)

    assert serve.returncode == 2
    assert f"--port {port} is no use" in serve.stderr
    assert "Traceback" not in serve.stderr


@pytest.mark.parametrize("command", [["check"], ["makemigrations", "--check"]], ids=str)
def test_the_project_is_complete(command: list[str]) -> None:
    manage = run(
        "manage.py",
        *command,
        LETTERMINT_API_TOKEN="lm_any_token",
        LETTERMINT_SIGNING_SECRET="whsec_any",
        EXAMPLE_DATABASE=":memory:",
    )

    assert manage.returncode == 0, manage.stdout + manage.stderr
    assert "no issues" in manage.stdout or "No changes" in manage.stdout
