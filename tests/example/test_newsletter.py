"""The example's mailing: it goes on after `kill -9`, and queues nothing twice."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SUBSCRIBERS = 1000
CHUNK = 50


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "db.sqlite3"


@contextmanager
def manage(database: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of the example project."""
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "newsletter.settings",
        "EXAMPLE_DATABASE": str(database),
        "LETTERMINT_API_TOKEN": "lm_unused",
        "LETTERMINT_SIGNING_SECRET": "whsec_unused",
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen(
        [sys.executable, "-W", "error", "manage.py", *arguments],
        cwd=ROOT / "example_project",
        env=env,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(database: Path, *arguments: str, code: int = 0) -> str:
    """Run a command to its end, and return what it wrote to stderr."""
    with manage(database, *arguments) as process:
        errors = process.communicate()[1].decode()
    assert process.returncode == code, errors
    return errors


def queued(database: Path) -> list[str]:
    """Return the forms of all tasks."""
    with closing(sqlite3.connect(database)) as connection:
        query = "select args_kwargs from django_tasks_database_dbtaskresult"
        return [form for (form,) in connection.execute(query)]


def test_a_mailing_goes_on_after_a_kill_without_duplicates(database: Path) -> None:
    run(database, "migrate", "-v0")
    send = ("send_newsletter", "spring", f"--chunk={CHUNK}")
    with manage(database, *send, f"--subscribers={SUBSCRIBERS}") as process:
        assert process.stderr
        written = b""
        while f"{4 * CHUNK}/{SUBSCRIBERS}".encode() not in written:
            piece = process.stderr.read(1)
            assert piece, written
            written += piece
        process.kill()
    done = len(queued(database))
    assert 4 * CHUNK <= done < SUBSCRIBERS
    assert done % CHUNK == 0

    progress = run(database, *send)

    assert progress.startswith("\r[")
    assert f"] {done}/{SUBSCRIBERS}" in progress
    assert progress.endswith(f"] {SUBSCRIBERS}/{SUBSCRIBERS}\n")
    forms = queued(database)
    for number in range(1, SUBSCRIBERS + 1):
        key = f'"newsletter/spring/{number}"'
        assert sum(key in form for form in forms) == 1
    assert len(forms) == SUBSCRIBERS


def test_a_mailing_that_is_complete_queues_nothing(database: Path) -> None:
    run(database, "migrate", "-v0")
    run(database, "send_newsletter", "spring", "--subscribers=3")
    run(database, "send_newsletter", "spring")
    run(database, "send_newsletter", "summer")

    assert len(queued(database)) == 6


def test_a_wrong_address_keeps_nobody_else_from_getting_the_issue(
    database: Path,
) -> None:
    run(database, "migrate", "-v0")
    run(database, "send_newsletter", "spring", "--subscribers=5")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update newsletter_subscriber set email='x' where id=2")

    progress = run(database, "send_newsletter", "summer", "--chunk=2")

    assert "subscriber 2: to: 'x' is refused" in progress
    assert progress.endswith("] 5/5\n")
    assert sum('"newsletter/summer/' in form for form in queued(database)) == 4
    assert "refused" not in run(database, "send_newsletter", "summer")


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_of_nobody_is_refused(database: Path, chunk: int) -> None:
    run(database, "migrate", "-v0")

    errors = run(database, "send_newsletter", "spring", f"--chunk={chunk}", code=1)

    assert errors == "CommandError: --chunk must be 1 or more\n"
