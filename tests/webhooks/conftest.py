from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anymail.signals import inbound, tracking

from tests.listening import receiver as connected
from tests.webhooks.posting import Receiver, configure


@pytest.fixture(autouse=True)
def _project(settings: Any, request: pytest.FixtureRequest) -> None:
    settings.ROOT_URLCONF = "tests.webhook_urls"
    settings.MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": request.node.nodeid,
        }
    }
    configure(settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receives = Receiver()
    with connected(tracking, receives), connected(inbound, receives):
        yield receives
