"""What the README shows works."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator
from email.utils import parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
import pytest
from anymail.signals import AnymailTrackingEvent, tracking
from django.core.mail import EmailMessage, send_mail
from django.test import override_settings

from django_lettermint.exceptions import RecipientsRefused

from .snippets import ROOT, read, receivers_forgotten, snippet, where

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

README = ROOT / "README.md"
TEXT = README.read_text("utf-8")
SETTINGS = [each for each in read(README) if each.is_settings]
#: Older Djangos have no MAILERS.
USABLE = [
    each for each in SETTINGS if django.VERSION >= (6, 1) or "MAILERS" not in each.code
]


def shown(text: str) -> dict[str, Any]:
    """Run the one snippet that has a text and return what it defines."""
    return snippet(README, text).run({})


@pytest.fixture(params=USABLE, ids=lambda each: each.code.split()[0])
def configured(
    request: pytest.FixtureRequest,
    lettermint_relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Relay]:
    """A relay, reached by one of the README's settings."""
    monkeypatch.setenv("LETTERMINT_API_TOKEN", lettermint_relay.token)
    named = request.param.run({"os": os})
    with override_settings(**named, **where(lettermint_relay)):
        yield lettermint_relay


@pytest.fixture(autouse=True)
def _signals_forget() -> Iterator[None]:
    """Disconnect the receivers of snippets."""
    with receivers_forgotten():
        yield


def test_both_styles_of_settings_are_shown() -> None:
    assert [each.code.split()[0] for each in SETTINGS] == ["MAILERS", "EMAIL_BACKEND"]


def test_the_settings_send_mail(configured: Relay) -> None:
    send_mail("Hello", "It works.", "shop@example.com", ["ada@example.com"])

    [mail] = configured.messages
    assert mail.headers["Subject"] == "Hello"


def test_the_example_sends_with_route_tag_and_metadata(
    configured: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    defined = shown("message.send()")

    [mail] = configured.messages
    assert mail.recipients == (parseaddr(defined["message"].to[0])[1],)
    assert (mail.route, mail.tag) == ("outgoing", "order shipped")
    assert mail.metadata["order_id"] == "4711"
    assert capsys.readouterr().out.startswith("Outcome.SENT ")


def test_the_receiver_hears_of_a_failure(
    configured: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = shown("message_failed")
    configured.refuse("nobody@example.com")

    with pytest.raises(RecipientsRefused):
        EmailMessage("Hi", "", "shop@example.com", ["nobody@example.com"]).send()

    assert "on_failure" in kept
    assert capsys.readouterr().out.startswith("Hi Outcome.NOT_SENT ")


def test_the_receiver_hears_of_a_webhook(capsys: pytest.CaptureFixture[str]) -> None:
    kept = shown("(tracking)")
    event = AnymailTrackingEvent(
        event_type="bounced",
        message_id="our-id",
        recipient="ada@example.com",
        mta_response="No such user",
    )

    tracking.send(sender=None, event=event, esp_name="Lettermint")

    assert "on_tracking" in kept
    told = "our-id bounced ada@example.com No such user\n"
    assert capsys.readouterr().out == told


def test_each_command_names_an_environment_of_tox() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", "utf-8")

    named = re.findall(r"^python3 -m venv .*/tox run -e (\w+)$", TEXT, re.MULTILINE)

    assert named == ["demo", "py", "example"]
    # `py` is the base environment on the Python that runs tox.
    sections = {"testenv:py", *tox.sections()}
    assert {f"testenv:{name}" for name in named} <= sections


@pytest.mark.parametrize("name", ["demo", "py"])
def test_ci_runs_the_command_as_it_is_shown(name: str) -> None:
    [command] = re.findall(rf"^python3 -m venv .* -e {name}$", TEXT, re.MULTILINE)

    assert command in (ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize(
    "document", [README, ROOT / "example_project" / "README.md"], ids=str
)
def test_each_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text("utf-8"))

    missing = [link for link in links if not (document.parent / link).exists()]

    assert missing == []
