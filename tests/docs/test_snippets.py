"""The snippets of README and docs run; `tests.snippets` describes their marks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core.checks import ERROR, run_checks
from django.core.mail import EmailMessage
from django.test import override_settings

import django_lettermint
from tests.snippets import PAGES, ROOT, Snippet, read, receivers_forgotten, where

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

BACKEND = "django_lettermint.backend.EmailBackend"
HAS_MAILERS = django.VERSION >= (6, 1)

#: Settings of a reader's project.
PROJECT = """
SECRET_KEY = "project"
USE_TZ = True
ROOT_URLCONF = "urls"
STATIC_URL = "static/"
INSTALLED_APPS = ["django_lettermint"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""
URLS = """
from django.urls import include, path

urlpatterns = [path("anymail/", include("django_lettermint.urls"))]
"""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def set_environment(
    snippets: list[Snippet], relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set each environment variable that snippets read: a secret or the token."""
    for snippet in snippets:
        for variable in re.findall(r'os\.environ\["(\w+)"\]', snippet.code):
            value = "whsec_documented" if "SECRET" in variable else relay.token
            monkeypatch.setenv(variable, value)


def check(values: dict[str, Any], relay: Relay) -> None:
    """Run the system checks, and send a mail by each of our backends in the settings."""
    relay.clear()
    with override_settings(**values):
        found = [each for each in run_checks(tags=["mail"]) if each.level >= ERROR]
        assert found == []
        sent = 0
        for alias, mailer in values.get("MAILERS", {"": {}}).items():
            if mailer.get("BACKEND", values.get("EMAIL_BACKEND")) == BACKEND:
                using = {"using": alias} if alias else {}
                message = EmailMessage("Hi", "…", "a@example.com", ["b@example.com"])
                sent += message.send(**using)
    assert len(relay.messages) == sent


def completed(values: dict[str, Any], relay: Relay) -> dict[str, Any]:
    """Return settings with what a page does not repeat: the backend and the relay."""
    complete = {**where(relay), **values}
    if "MAILERS" not in values:
        complete.setdefault("EMAIL_BACKEND", BACKEND)
        if "LETTERMINT_API_TOKEN" not in values.get("ANYMAIL", ()):
            complete.setdefault("LETTERMINT_API_TOKEN", relay.token)
    return complete


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_snippets_of_a_page_run(
    page: Path, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = [each for each in read(page) if not each.is_test]
    set_environment(snippets, relay, monkeypatch)
    names: dict[str, Any] = {"os": os}
    held, heading = completed({}, relay), ""
    usable = True
    with receivers_forgotten():
        for snippet in snippets:
            if snippet.heading != heading:
                held, heading = completed({}, relay), snippet.heading
                usable = True
            if not snippet.runs:
                snippet.compile()
            elif snippet.is_settings:
                values = snippet.run(dict(names))
                usable = HAS_MAILERS or "MAILERS" not in values
                if usable:
                    held = completed(values, relay)
                    check(held, relay)
            elif usable:
                with override_settings(**held):
                    snippet.run(names)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(each.is_test for each in read(page))],
    ids=name,
)
def test_the_tests_that_a_page_shows_pass(page: Path, tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "urls.py").write_text(URLS)
    other_style = "settings.EMAIL_BACKEND" if HAS_MAILERS else "MAILERS"
    shown = [
        each
        for each in read(page)
        if each.runs and each.is_test and other_style not in each.code
    ]
    for snippet in shown:
        with (tmp_path / snippet.file).open("a") as file:
            file.write(snippet.code)

    # Only these two plugins, as in a reader's project.
    plugins = ("-p", "pytest_django.plugin", "-p", "django_lettermint.testing.fixtures")
    package = Path(django_lettermint.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", *plugins],
        cwd=tmp_path,
        env=os.environ
        | {
            "DJANGO_SETTINGS_MODULE": "project",
            "PYTEST_ADDOPTS": "",  # may name options of plugins that are not there
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(package),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    tests = sum(each.code.count("def test_") for each in shown)
    assert f"{tests} passed" in done.stdout
