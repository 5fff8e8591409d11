from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faultserver import FaultServer
from tests.sending import listening
from tests.tasks.queueing import ServedQueue, settings_for


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(idempotency=True) as running, settings_for(running, retries=0):
        yield running


@pytest.fixture
def queue(server: FaultServer) -> Iterator[ServedQueue]:
    with listening() as heard:
        yield ServedQueue(server, heard)
