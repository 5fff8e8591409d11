"""Popular applications send their mail through the relay.

Each one has its own project, a module of this folder, which runs in a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
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


def received(relay: Relay) -> list[tuple[str, str | None]]:
    """Return subject and tag of the received mails, sorted."""
    return sorted((mail.headers["Subject"], mail.tag) for mail in relay.messages)


@pytest.mark.parametrize(
    ("application", "mails"),
    [
        ("wagtail_form", [("A question", None)]),
        (
            "post_office_queue",
            [("Direct", "direct"), ("Frozen", "hello"), ("Hello", None)],
        ),
        ("celery_email_queue", [("Frozen", "hello"), ("Hello", None)]),
    ],
)
@pytest.mark.parametrize("style", STYLES)
def test_an_application_sends_its_mails(
    application: str, mails: list[tuple[str, str | None]], style: str, relay: Relay
) -> None:
    run(application, relay, style)

    assert received(relay) == mails


def test_mailer_sends_stored_mail(relay: Relay) -> None:
    run("mailer_queue", relay, "EMAIL_BACKEND")

    assert received(relay) == [("Hello", None), ("Tagged", "hello")]


@pytest.mark.parametrize("style", STYLES)
def test_allauth_asks_for_confirmation(relay: Relay, style: str) -> None:
    run("allauth_signup", relay, style)

    [(subject, _)] = received(relay)
    assert "Confirm" in subject


@pytest.mark.parametrize("style", STYLES)
def test_health_check_logs_in_and_sends_nothing(relay: Relay, style: str) -> None:
    run("health_check", relay, style)

    assert relay.logins.successes == 1
    assert relay.messages == []
