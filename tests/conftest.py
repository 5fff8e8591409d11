from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import coverage
import pytest
from hypothesis import settings

from tests.browsing import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not at the top: only the environments that run these tests have Playwright.
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may ask this machine only, and has no errors in its scripts."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("http://127.0.0.1:")] == []


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: PYTEST_SCREENSHOTS=docs/screenshots renews the documentation's."""
    chosen = os.environ.get("PYTEST_SCREENSHOTS")
    return Path(chosen).resolve() if chosen else tmp_path_factory.mktemp("screenshots")
