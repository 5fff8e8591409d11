from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import coverage
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_lettermint.testing import Relay

# No deadline: a busy machine is not a bug. New examples on each run, with the blob that
# repeats a failure; the same ones in CI, which judges a change and not the dice.
settings.register_profile("default", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def _free_coverage() -> None:
    """Replace a lock that a thread may have held that did not come along."""
    measuring = coverage.Coverage.current()
    if measuring and measuring._collector:
        measuring._collector.data_lock = threading.Lock()


os.register_at_fork(after_in_child=_free_coverage)


@pytest.fixture(autouse=True)
def _no_pool_outlives_its_test() -> Iterator[None]:
    yield
    # Not imported here: a test of a pure module must not need the whole package.
    if pool := sys.modules.get("django_lettermint.pool"):
        pool.close_pools()


@pytest.fixture
def relay() -> Iterator[Relay]:
    from django_lettermint.testing import Relay

    with Relay() as running:
        yield running
