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

STYLES = ["EMAIL_BACKEND", "MAILERS"] if django.VERSION >= (6, 1) else ["EMAIL_BACKEND"]


@pytest.mark.parametrize(
    ("application", "mails"),
    [
        ("wagtail_form", [("A question", None)]),
        (
            "post_office_queue",
            [("Direct", "direct"), ("Frozen", "hello"), ("Hello", None)],
        ),
        ("celery_email_queue", [("Frozen", "hello"), ("Hello", None)]),
        ("mailer_queue", [("Hello", None), ("Tagged", "hello")]),
    ],
)
@pytest.mark.parametrize("style", STYLES)
def test_an_application_sends_its_mails(
    application: str, mails: list[tuple[str, str | None]], style: str, relay: Relay
) -> None:
    if application == "mailer_queue" and style == "MAILERS":
        pytest.skip(
            "django-mailer passes the path of a backend to get_connection(), which "
            "Django does not allow with MAILERS"
        )
    options = json.dumps(relay.options())
    done = subprocess.run(
        [sys.executable, "-m", f"tests.applications.{application}"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env=environment(APPLICATION_RELAY=options, APPLICATION_SETTINGS=style),
    )

    assert done.returncode == 0, done.stderr
    received = sorted((mail.headers["Subject"], mail.tag) for mail in relay.messages)
    assert received == mails
