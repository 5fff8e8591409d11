"""The pytest fixture, in a project of its own and without the extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import django_lettermint.testing

ROOT = Path(django_lettermint.testing.__file__).parents[2]

PROJECT_TEST = """
import smtplib, ssl

def test_mail_arrives(lettermint_relay):
    options = lettermint_relay.options()
    context = ssl.create_default_context(cafile=options["ca_file"])
    with smtplib.SMTP_SSL(options["host"], options["port"], context=context) as client:
        client.login("lettermint", options["api_token"])
        client.sendmail("a@example.com", ["b@example.com"], "Subject: Hi")
    assert lettermint_relay.messages[0].mime["Subject"] == "Hi"
"""

WITHOUT_EXTRA = """
import sys
sys.modules["trustme"] = None
import django_lettermint.testing.fixtures
try:
    django_lettermint.testing.Relay
except ModuleNotFoundError as error:
    print(*error.__notes__)
"""


def python(*arguments: str, folder: Path) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTEST_ADDOPTS": "",  # may name options of plugins that are not there
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_fixture_gives_a_project_a_running_relay(tmp_path: Path) -> None:
    (tmp_path / "test_mail.py").write_text(PROJECT_TEST)
    plugin = "django_lettermint.testing.fixtures"
    output = python("-m", "pytest", "-W", "error", "-p", plugin, folder=tmp_path)
    assert "1 passed" in output


def test_without_the_extra_the_plugin_loads_and_the_relay_says_what_is_missing(
    tmp_path: Path,
) -> None:
    output = python("-c", WITHOUT_EXTRA, folder=tmp_path)
    assert "pip install 'django-lettermint-smtp[testing]'" in output


def test_every_public_name_is_there_and_no_other() -> None:
    public = django_lettermint.testing
    assert all(getattr(public, name) for name in public.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Rely'"):
        _ = public.Rely
