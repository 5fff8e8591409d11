"""The queues of docs/queues.md with real workers.

The relay fails at random and a worker is killed; each mail is delivered exactly once and
ends with one signal. The seed is printed; QUEUE_SEED=… repeats its random choices.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Answer, sometimes
from tests.faultserver import FaultServer, On, accept_then, drop, reply
from tests.workers.processes import Signals, postgresql, process, python, redis

pytestmark = [
    pytest.mark.external,
    pytest.mark.workers,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

MAILS = 600
WORKERS = 4
MAX_SIZE = 2
#: After so many deliveries, a worker is killed that waits for the reply to the next.
KILL_AFTER = 200


def failing_at_random(dice: random.Random) -> list[On]:
    """Fail about one transaction of ten, in every way that a relay can."""
    later, lost = reply(451, "4.7.0 later"), drop()
    return [
        On("ehlo", sometimes(dice, 0.02, lost)),
        On("mail", sometimes(dice, 0.02, later)),
        On("rcpt", sometimes(dice, 0.02, later)),
        On("data", sometimes(dice, 0.01, drop(rst=True))),
        On("body", sometimes(dice, 0.01, lost)),
        On("dot", sometimes(dice, 0.04, later, drop(deliver=True))),
    ]


class Hold:
    """Takes one message, and never answers it."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.connection = 0

    def act(self, answer: Answer) -> Answer:
        def play(wire: Any) -> None:
            self.connection = wire.number
            self.holds.set()
            wire.pause()

        return accept_then(lambda _: Answer(0, play))(answer)


@dataclass(frozen=True)
class Engine:
    """How to run a queue."""

    name: str
    command: tuple[str, ...]
    #: The server that it needs, started in the folder.
    server: Callable[[Path], Any] | None = None
    env: tuple[tuple[str, str], ...] = ()
    #: Runs again what the killed worker had begun; None if the engine itself does so.
    recover: tuple[str, ...] | None = None


SQLITE = Engine(
    name="database",
    command=("-m", "django", "db_worker", "--interval", "0.2", "--no-reload"),
    recover=("-m", "django", "requeue_lettermint", "--older-than", "1"),
)
RQ = "rqworker --worker-class rq.SimpleWorker --job-class django_tasks_rq.Job"
CELERY = "celery -A tests.workers.celery worker --pool solo --loglevel INFO"
ENGINES = {
    "sqlite": SQLITE,
    "postgresql": replace(SQLITE, server=postgresql, env=(("QUEUE_POSTGRESQL", "1"),)),
    "rq": Engine(
        name="rq",
        command=("-m", "django", *RQ.split(), "--with-scheduler"),
        server=redis,
        recover=("-m", "tests.workers.requeue_rq"),
    ),
    "celery": Engine(
        name="celery",
        command=("-m", *CELERY.split()),
        server=redis,
    ),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's: the path of a socket is at most 107 octets long, and PostgreSQL's
    # user must be able to enter.
    with tempfile.TemporaryDirectory(prefix="queue-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize("name", ENGINES)
def test_each_mail_is_delivered_once_although_the_relay_fails_and_a_worker_is_killed(
    name: str, folder: Path
) -> None:
    engine = ENGINES[name]
    seed = os.environ.get("QUEUE_SEED") or str(random.randrange(10**9))
    print(f"QUEUE_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    hold = Hold()
    with (
        engine.server(folder) if engine.server else ExitStack(),
        FaultServer(failing_at_random(random.Random(seed)), idempotency=True) as server,
        Signals(folder / "signals.sock") as signals,
    ):
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.workers.settings",
            "QUEUE_ENGINE": engine.name,
            "QUEUE_FOLDER": str(folder),
            "QUEUE_SIGNALS": signals.path,
            "QUEUE_RELAY": json.dumps(server.options(pool={"max_size": MAX_SIZE})),
            **dict(engine.env),
        }
        python("-m", "tests.workers.fill", str(MAILS), env=env)
        logs = [folder / f"worker{number}.log" for number in range(WORKERS)]
        with ExitStack() as running:
            processes = [
                running.enter_context(
                    process(
                        sys.executable,
                        *engine.command,
                        env={**env, "WORKER": str(number)},
                        log=log,
                    )
                )
                for number, log in enumerate(logs)
            ]
            assert server.wait_for(lambda: len(server.deliveries) >= KILL_AFTER, 60)
            server.script.insert(0, On("dot", hold.act, times=1))
            assert hold.holds.wait(30)
            killed = processes[worker_of(server, hold.connection)]
            killed.kill()
            assert killed.wait(10) < 0
            if engine.recover:
                assert signals.wait_for(MAILS - 1, 120), missing(signals, logs)
                python(*engine.recover, env=env)
            assert signals.wait_for(MAILS, 120), missing(signals, logs)

    assert server.delivered == {f"{number}@example.org": 1 for number in range(MAILS)}
    ended = [json.loads(each) for each in signals.received]
    assert Counter(each["to"][0] for each in ended) == Counter(server.delivered)
    assert {(each["outcome"], each["tag"]) for each in ended} == {
        ("sent", "newsletter")
    }
    assert server.peak_connections <= WORKERS * MAX_SIZE
    assert server.violations == []
    assert server.replays >= 1  # the killed worker's, at least


def worker_of(server: FaultServer, connection: int) -> int:
    """Return the number of the worker that has a connection, by its EHLO name."""
    [name] = {
        line
        for number, line in list(server.commands)
        if number == connection and line.upper().startswith(b"EHLO")
    }
    found = re.search(rb"worker-(\d+)", name)
    assert found
    return int(found[1])


def missing(signals: Signals, logs: list[Path]) -> str:
    ends = "\n".join(each.read_text()[-3000:] for each in logs)
    return f"{len(signals.received)} signals; {ends}"
