"""Applications that projects use send their mail through the relay.

Each has a project and a process of its own. The names in the table are modules beside
this one.
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

# Only their own environment in tox has all of them.
pytest.importorskip("wagtail")
pytest.importorskip("mailer")

pytestmark = [pytest.mark.applications, pytest.mark.timeout(120)]

#: django-mailer makes its connection by the path of a backend, which Django does not do
#: with MAILERS.
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
    """Return the mails that came, in the order of their subjects."""
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
def test_post_office_sends_what_it_keeps(relay: Relay, style: str) -> None:
    run("post_office_queue", relay, style)

    assert received(relay) == [
        Mail("Direct", ("bob@example.com",), tag="direct"),
        Mail("Frozen", tag="hello"),
        Mail("Hello"),
    ]


def test_mailer_sends_what_it_keeps(relay: Relay) -> None:
    run("mailer_queue", relay, "EMAIL_BACKEND")

    assert received(relay) == [Mail("Hello"), Mail("Tagged", tag="hello")]


@pytest.mark.parametrize("style", STYLES)
def test_celery_email_sends_what_its_task_gets(relay: Relay, style: str) -> None:
    run("celery_email_queue", relay, style)

    assert received(relay) == [Mail("Frozen", tag="hello"), Mail("Hello")]


@pytest.mark.parametrize("style", STYLES)
def test_health_check_logs_in(relay: Relay, style: str) -> None:
    run("health_check", relay, style)

    assert relay.logins.successes == 1
    assert relay.messages == []
