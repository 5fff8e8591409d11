"""What the README shows works, and what the quick start adds to it."""

from __future__ import annotations

import configparser
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
from tests.snippets import (
    DOCS,
    ROOT,
    Snippet,
    read,
    receivers_forgotten,
    snippet,
    where,
)

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

README = ROOT / "README.md"
QUICK_START = DOCS / "quickstart.md"
TEXT = README.read_text("utf-8")
STYLES = ("MAILERS", "EMAIL_BACKEND")
SETTINGS = [each for each in read(README) if each.is_settings]
#: Older Djangos have no MAILERS.
USABLE = [
    each for each in SETTINGS if django.VERSION >= (6, 1) or "MAILERS" not in each.code
]


def shown(text: str) -> dict[str, Any]:
    """Run the quick start's one snippet that has a text; return what it defines."""
    return snippet(QUICK_START, text).run({})


def style(settings: Snippet) -> str:
    """Return the setting that names the backend."""
    return next(each for each in STYLES if each in settings.code)


@pytest.fixture(params=USABLE, ids=style)
def configured(
    request: pytest.FixtureRequest,
    lettermint_relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Relay]:
    """A relay, reached by one of the README's settings."""
    monkeypatch.setenv("LETTERMINT_API_TOKEN", lettermint_relay.token)
    named = {
        name: value for name, value in request.param.run({}).items() if name.isupper()
    }
    with override_settings(**named, **where(lettermint_relay)):
        yield lettermint_relay


@pytest.fixture(autouse=True)
def _signals_forget() -> Iterator[None]:
    """Disconnect the receivers of snippets."""
    with receivers_forgotten():
        yield


def test_both_styles_of_settings_are_shown() -> None:
    assert tuple(map(style, SETTINGS)) == STYLES


def test_the_quick_start_shows_the_same_settings() -> None:
    repeated = [each.code for each in read(QUICK_START) if each.is_settings]

    assert repeated[: len(SETTINGS)] == [each.code for each in SETTINGS]


def test_the_figures_are_those_of_the_performance_page() -> None:
    table = (DOCS / "performance.md").read_text("utf-8")
    single, of_a_list = (
        times_as_fast(table, "20 ms, one by one"),
        times_as_fast(table, "20 ms, a list of 100"),
    )

    assert f"sends {single:.0f} times as many mails a second" in TEXT
    assert f"a list of 100 goes out {of_a_list:.0f} times as fast" in TEXT


def times_as_fast(table: str, row: str) -> float:
    """Return how many times as fast as Django's backend this package was, as shipped."""
    found = re.search(rf"^\| {row} \|(.*)$", table, re.MULTILINE)
    assert found
    django_backend, _, _, _, ours = map(float, found[1].split("|")[:5])
    return ours / django_backend


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
