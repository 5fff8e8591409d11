"""A new project's first mail, by the words of docs/lettermint_relay.md."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import django

from tests.programs import environment
from tests.snippets import DOCS, read
from tests.testing.relay_command import ANY_PORTS, WAITING, Served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = DOCS / "lettermint_relay.md"
SETTINGS = {"DJANGO_SETTINGS_MODULE": "shop.settings"}
STYLE = "MAILERS" if django.VERSION >= (6, 1) else "EMAIL_BACKEND"


@contextmanager
def started(project: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        cwd=project,
        env=environment(**SETTINGS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(project: Path, *arguments: str) -> str:
    with started(project, *arguments) as process:
        output, errors = process.communicate(timeout=50)
    assert process.returncode == 0, errors
    return output + errors


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

    with started(tmp_path, *start, *ANY_PORTS) as process:
        relay = Served()
        while WAITING not in relay.output:
            assert process.stdout
            relay.output += (line := process.stdout.readline())
            assert line, relay.output
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

        with urllib.request.urlopen(relay.inbox, timeout=10) as page:
            assert "Test email from" in page.read().decode()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert "ada@example.com" in output
    assert (process.returncode, errors) == (0, "")
