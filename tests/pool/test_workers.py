"""gunicorn and Celery, for real: their workers send, and inherit nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.programs import ROOT, environment

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

pytestmark = pytest.mark.workers

PROGRAMS = "tests.pool.worker_programs"
MAX_SIZE = 2
MAILS = 60


@contextmanager
def running(
    *command: str, relay: Relay, ready: str, **others: str
) -> Iterator[re.Match[str]]:
    """Run a server until the end of the block; give where its log said it was ready."""
    options = relay.options(pool={"max_size": MAX_SIZE, "timeout": 30})
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment(OPTIONS=json.dumps(options), **others),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        log = ""
        try:
            while not (found := re.search(ready, log)):
                line = process.stderr.readline()
                assert line, log
                log += line
            yield found
            process.send_signal(signal.SIGTERM)
            log += process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log


def assert_all_is_well(relay: Relay, children: int) -> None:
    """Look at what must hold however the work was divided."""
    messages = relay.messages
    everyone = Counter(each.recipients[0] for each in messages)
    assert set(everyone.values()) == {1}
    assert messages[0].recipients == ("preloaded@example.org",)

    # Each connection was used by one process only, which had no more than it may have.
    users = {(each.connection, each.mime.get_content()) for each in messages}
    assert len({connection for connection, _ in users}) == len(users)
    shares = Counter(pid for _, pid in users)
    assert len(shares) == children + 1
    assert max(shares.values()) <= MAX_SIZE
    # Every connection was closed in order: no broken TLS, and the exit hooks run.
    assert relay.statistics.commands["QUIT"] == relay.statistics.connections
    assert relay.logins.attempts == relay.logins.successes


def test_gunicorn_with_preload_two_workers_and_two_threads(relay: Relay) -> None:
    relay.reply_delay = 0.02  # long enough for both workers to get some of the work
    with running(
        *("gunicorn", "--preload", "--workers=2", "--threads=2", "--bind=127.0.0.1:0"),
        *(f"--config=python:{PROGRAMS}", f"{PROGRAMS}:load()"),
        relay=relay,
        ready=r"Listening at: (http://\S+)",
        DJANGO_SETTINGS_MODULE=PROGRAMS,
    ) as found:

        def request(number: int) -> bytes:
            with urllib.request.urlopen(f"{found[1]}/{number}", timeout=30) as response:
                answer: bytes = response.read()
            return answer

        with ThreadPoolExecutor(8) as executor:
            assert set(executor.map(request, range(MAILS))) == {b"sent"}

    assert_all_is_well(relay, children=2)
    # The master's own connection still served it when its children had ended.
    first, *_, last = relay.messages
    assert last.recipients[0].endswith(".gone@example.org")
    assert first.connection == last.connection
    assert relay.statistics.messages == MAILS + 3


def test_celery_with_prefork(relay: Relay, tmp_path: Path) -> None:
    from tests.pool.worker_programs import make_app

    relay.reply_delay = 0.02
    app = make_app(tmp_path)
    with running(
        *("celery", f"--app={PROGRAMS}:app", "worker", "--pool=prefork"),
        *("--concurrency=2", "--without-gossip", "--without-mingle", "--loglevel=info"),
        relay=relay,
        ready=r" ready\.",
        CELERY_FOLDER=str(tmp_path),
    ):
        for number in range(MAILS):
            app.send_task("send", args=[number])
        relay.wait_for(MAILS + 1, timeout=30)
    app.close()

    assert_all_is_well(relay, children=2)
    assert relay.statistics.messages == MAILS + 1
