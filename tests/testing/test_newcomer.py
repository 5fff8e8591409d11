"""A new project's first mail, by the words of docs/lettermint_relay.md."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import django

from tests.programs import environment
from tests.snippets import DOCS, read
from tests.testing.relay_process import relay_process

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "lettermint_relay.md"
SETTINGS = {"DJANGO_SETTINGS_MODULE": "shop.settings"}
STYLE = "MAILERS" if django.VERSION >= (6, 1) else "EMAIL_BACKEND"


def run(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=project,
        env=environment(**SETTINGS),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_first_mail_of_a_new_project_is_in_the_inbox(tmp_path: Path) -> None:
    run(tmp_path, "-m", "django", "startproject", "shop", ".")
    [snippet] = [each for each in read(PAGE) if STYLE in each.code]
    _, start, send = [
        line.split()[1:]
        for line in re.findall(r"^ *(p\w+ .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    ][:3]
    assert start == ["manage.py", "lettermint_relay"]
    settings = tmp_path / "shop" / "settings.py"
    text = settings.read_text("utf-8") + snippet.code
    settings.write_text(text, "utf-8")

    with relay_process(
        command=tuple(start), folder=tmp_path, variables=SETTINGS
    ) as relay:
        # The documented port may be taken where this test runs.
        port = relay.settings["LETTERMINT_PORT"]
        settings.write_text(text.replace("1025", str(port)), "utf-8")
        printed = {
            name: value
            for name, value in relay.settings.items()
            if name not in ("LETTERMINT_PORT", "LETTERMINT_IDEMPOTENCY")
        }
        documented: dict[str, object] = {"INSTALLED_APPS": []}
        exec(snippet.code, documented)
        assert printed.items() <= documented.items()

        assert "WARNING" not in run(tmp_path, *send)

        assert "ada@example.com" in relay.read_until("to:")
        with urllib.request.urlopen(relay.inbox, timeout=10) as page:
            assert "Test email from" in page.read().decode()
        relay.end()
