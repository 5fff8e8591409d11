"""Frozen messages keep route, tag and metadata through the other queues of docs/queues.md."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from tests.faultserver import FaultServer
from tests.workers.processes import Signals, python, redis, workers

pytestmark = [
    pytest.mark.external,
    pytest.mark.workers,
    pytest.mark.slow,
    pytest.mark.timeout(120),
]

CELERY = ("-m", "celery", "-A", "tests.workers.celery_app", "worker", "--pool", "solo")


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's: the path of a socket is at most 107 octets long.
    with tempfile.TemporaryDirectory(prefix="queue-") as name:
        yield Path(name)


@pytest.mark.parametrize("engine", ["celery", "celery-email", "post-office"])
def test_route_tag_and_metadata_survive(engine: str, folder: Path) -> None:
    with (
        FaultServer() as server,
        Signals(folder / "signals.sock") as signals,
        ExitStack() as stack,
    ):
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.workers.settings",
            "QUEUE_ENGINE": engine,
            "QUEUE_FOLDER": str(folder),
            "QUEUE_SIGNALS": signals.path,
            "QUEUE_RELAY": json.dumps(server.options()),
        }
        if engine == "post-office":
            python("-m", "tests.workers.frozen", env=env)
            assert server.deliveries == []
            python("-m", "django", "send_queued_mail", env=env)
        else:
            stack.enter_context(redis(folder))
            python("-m", "tests.workers.frozen", env=env)
            assert server.deliveries == []
            stack.enter_context(workers([CELERY], env=env, folder=folder))
        assert signals.wait_for(1, 60), logs(folder)

    [delivery] = server.deliveries
    found = message_from_bytes(delivery.content, policy=policy.default)
    assert delivery.recipients == ("bob@example.org",)
    assert found["Subject"] == "Grüße"
    assert found["X-Lettermint-Route"] == "news"
    assert found["X-LM-Tag"] == "welcome"
    assert found["X-LM-Metadata-order"] == "7"
    assert found["X-LM-Metadata-name"] == "Zoë"
    kinds = {part.get_content_type() for part in found.walk()}
    assert {"text/plain", "text/html"} <= kinds
    [told] = signals.told
    assert json.loads(told)["outcome"] == "sent"


def logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
