"""Popular applications send their mail through the relay.

Each one has its own project, a module of this folder, which runs in a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import django
import pytest

from tests.programs import ROOT, environment

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

# Installed by `tox run -e applications` only.
pytest.importorskip("wagtail")
pytest.importorskip("mailer")

pytestmark = [pytest.mark.applications, pytest.mark.timeout(120)]

#: Not for django-mailer, which passes the path of a backend to `get_connection()`; Django
#: does not allow that with MAILERS.
STYLES = ["EMAIL_BACKEND", "MAILERS"] if django.VERSION >= (6, 1) else ["EMAIL_BACKEND"]


def run(application: str, relay: Relay, style: str) -> None:
    """Run a project to its end."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.applications.{application}"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env=environment(
            APPLICATION_RELAY=json.dumps(relay.options()), APPLICATION_SETTINGS=style
        ),
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Mail:
    """What the relay read."""

    subject: str
    recipients: tuple[str, ...] = ("ada@example.com",)
    tag: str | None = None


def received(relay: Relay) -> list[Mail]:
    """Return the received mails, sorted by subject."""
    found = [
        Mail(mail.headers["Subject"], mail.recipients, mail.tag)
        for mail in relay.messages
    ]
    return sorted(found, key=lambda mail: mail.subject)


@pytest.mark.parametrize("style", STYLES)
def test_wagtail_mails_a_form(relay: Relay, style: str) -> None:
    run("wagtail_form", relay, style)

    assert received(relay) == [Mail("A question")]
    assert "Your question: When?" in relay.messages[0].mime.get_content()


@pytest.mark.parametrize("style", STYLES)
def test_allauth_asks_for_confirmation(relay: Relay, style: str) -> None:
    run("allauth_signup", relay, style)

    [mail] = received(relay)
    assert "Confirm" in mail.subject


@pytest.mark.parametrize("style", STYLES)
def test_post_office_sends_stored_mail(relay: Relay, style: str) -> None:
    run("post_office_queue", relay, style)

    assert received(relay) == [
        Mail("Direct", ("bob@example.com",), tag="direct"),
        Mail("Frozen", tag="hello"),
        Mail("Hello"),
    ]


def test_mailer_sends_stored_mail(relay: Relay) -> None:
    run("mailer_queue", relay, "EMAIL_BACKEND")

    assert received(relay) == [Mail("Hello"), Mail("Tagged", tag="hello")]


@pytest.mark.parametrize("style", STYLES)
def test_celery_email_sends_from_its_task(relay: Relay, style: str) -> None:
    run("celery_email_queue", relay, style)

    assert received(relay) == [Mail("Frozen", tag="hello"), Mail("Hello")]


@pytest.mark.parametrize("style", STYLES)
def test_health_check_logs_in(relay: Relay, style: str) -> None:
    run("health_check", relay, style)

    assert relay.logins.successes == 1
    assert relay.messages == []
