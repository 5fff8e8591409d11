"""The example's mailing continues after `kill -9` and queues each mail once."""

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
    path = tmp_path / "db.sqlite3"
    run(path, "migrate", "-v0")
    return path


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
    """Return the stored arguments of all tasks."""
    with closing(sqlite3.connect(database)) as connection:
        query = "select args_kwargs from django_tasks_database_dbtaskresult"
        return [arguments for (arguments,) in connection.execute(query)]


def test_a_mailing_continues_after_a_kill_without_duplicates(database: Path) -> None:
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

    assert f"] {done}/{SUBSCRIBERS}" in progress
    assert progress.endswith(f"] {SUBSCRIBERS}/{SUBSCRIBERS}\n")
    tasks = queued(database)
    for number in range(1, SUBSCRIBERS + 1):
        key = f'"newsletter/spring/{number}"'
        assert sum(key in task for task in tasks) == 1
    run(database, *send)
    assert len(queued(database)) == SUBSCRIBERS


def test_a_wrong_address_does_not_stop_the_others(database: Path) -> None:
    run(database, "send_newsletter", "spring", "--subscribers=5")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update newsletter_subscriber set email='x' where id=2")

    progress = run(database, "send_newsletter", "summer", "--chunk=2")

    assert "subscriber 2: to: 'x' is refused" in progress
    assert progress.endswith("] 5/5\n")
    assert sum('"newsletter/summer/' in task for task in queued(database)) == 4
    assert "refused" not in run(database, "send_newsletter", "summer")


def test_an_empty_chunk_is_refused(database: Path) -> None:
    errors = run(database, "send_newsletter", "spring", "--chunk=0", code=1)
    assert errors == "CommandError: --chunk must be 1 or more\n"
