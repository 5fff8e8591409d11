"""Django's and other apps' ways to send mail, in each style of settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings
from django.urls import reverse

from django_lettermint.message import extras

if TYPE_CHECKING:
    from django.test import Client

    from django_lettermint.testing import Relay

BACKEND = "django_lettermint.backend.EmailBackend"
STYLES = ["anymail", "bare", "prefixed"]
if django.VERSION >= (6, 1):
    STYLES.append("mailers")
ROOT = Path(__file__).parent.parent


def project(style: str, relay: Relay) -> dict[str, Any]:
    """Return the settings with which a project sends through a relay."""
    people = ["boss@example.com"]
    if django.VERSION < (6, 0):
        people = [("Boss", each) for each in people]  # type: ignore[misc]
    common = {
        "ADMINS": people,
        "MANAGERS": people,
        "DEFAULT_FROM_EMAIL": "Shop <shop@example.com>",
        "SERVER_EMAIL": "server@example.com",
    }
    if style == "mailers":
        default = {"BACKEND": BACKEND, "OPTIONS": relay.options()}
        return common | {"MAILERS": {"default": default}}
    named = relay.settings()
    if style == "prefixed":
        named = {f"ANYMAIL_{name}": value for name, value in named.items()}
    if style == "anymail":
        named = {"ANYMAIL": named}
    return common | named | {"EMAIL_BACKEND": BACKEND}


TEMPLATES = {
    "registration/password_reset_email.html": "{% url 'password_reset_confirm' uidb64=uid token=token %}",
    "registration/password_reset_subject.txt": "Your password\n",
}


@pytest.mark.django_db
@override_settings(
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [("django.template.loaders.locmem.Loader", TEMPLATES)]
            },
        }
    ]
)
def test_djangos_password_reset_arrives_with_extras(
    relay: Relay, client: Client
) -> None:
    get_user_model().objects.create_user("ann", "ann@example.com", "pass")
    with (
        override_settings(**project("anymail", relay)),
        extras(route="accounts", tag="password-reset", metadata={"user": "ann"}),
    ):
        response = client.post(reverse("password_reset"), {"email": "ann@example.com"})
    assert response.status_code == 302
    [received] = relay.messages
    assert received.recipients == ("ann@example.com",)
    assert received.route == "accounts"
    assert received.tag == "password-reset"
    assert received.metadata["user"] == "ann"
    assert received.headers["Subject"] == "Your password"
    assert "/reset/" in received.mime.get_content()


SCRIPT = """
import json, logging, pickle, sys
import django
from django.conf import settings

settings.configure(**json.loads(sys.argv[1]))
django.setup()
from django.core import mail
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.pool import get_stats

logging.basicConfig(level=logging.DEBUG)
assert mail.send_mail("Hi", "Grüße", None, ["ann@example.com"], html_message="<p>") == 1
assert mail.send_mass_mail([("Hi", "Hello", None, ["ann@example.com"])] * 2) == 2
mail.mail_admins("Hi", "Hello")
mail.mail_managers("Hi", "Hello")
message = EmailMultiAlternatives("Hi", "Hello", None, ["ann@example.com"])
message.attach_alternative("<p>", "text/html")
assert message.send() == 1
message.alternatives.clear()  # Django 5.2.0 cannot pickle them
assert pickle.loads(pickle.dumps(message)).send() == 1
with extras(tag="block"):
    assert LettermintMessage("Hi", "x", None, ["ann@example.com"], route="r").send() == 1
assert EmailMessage("Hi", "Hello", None, []).send() == 0
[stats] = get_stats()
print(stats["opened"], "connection")
"""


@pytest.mark.parametrize("style", STYLES)
def test_each_way_to_send_mail_works_without_a_warning_and_shows_no_token(
    relay: Relay, style: str
) -> None:
    named = project(style, relay) | {
        "INSTALLED_APPS": ["django_lettermint"],
        "SECRET_KEY": "tests",
        "USE_TZ": True,
    }
    warnings = ["-W", "error"]
    if django.VERSION >= (6, 1) and style != "mailers":
        # Django's own, about the setting.
        warnings += ["-W", "ignore:The EMAIL_BACKEND setting is deprecated"]
    done = subprocess.run(
        [sys.executable, *warnings, "-c", SCRIPT, json.dumps(named)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout == "1 connection\n"
    assert relay.token not in done.stdout + done.stderr
    assert [each.recipients for each in relay.messages] == [
        *[("ann@example.com",)] * 3,
        *[("boss@example.com",)] * 2,
        *[("ann@example.com",)] * 3,
    ]
    first, *_, last = relay.messages
    assert (first.mail_from, first.security) == ("shop@example.com", "tls")
    assert first.headers["From"] == "Shop <shop@example.com>"
    assert first.mime.get_content_type() == "multipart/alternative"
    assert list(first.metadata) == ["django_message_id"]
    assert first.idempotency_key
    assert (last.route, last.tag) == ("r", "block")
    assert relay.statistics.connections == 1
    # At exit, the pool sends QUIT.
    assert relay.wait_until(lambda now: now.open == 0).commands["QUIT"] == 1
