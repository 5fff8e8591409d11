"""Fixtures for pytest, found by it through the entry point `django_lettermint`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .relay import Relay


@pytest.fixture
def lettermint_relay() -> Iterator[Relay]:
    """Run a Relay for the length of one test."""
    # Not at the top: pytest loads this module in projects without the extra `testing` too.
    from . import Relay

    with Relay() as relay:
        yield relay


@pytest.fixture
def lettermint_outbox(settings: Any) -> list[Any]:
    """Let `django_lettermint.testing.backend` take one test's mail; needs pytest-django."""
    from django import VERSION
    from django.core import mail

    backend = "django_lettermint.testing.backend.EmailBackend"
    if VERSION >= (6, 1):
        aliases = {"default", *getattr(settings, "MAILERS", ())}
        settings.MAILERS = {alias: {"BACKEND": backend} for alias in aliases}
    else:
        settings.EMAIL_BACKEND = backend
    outbox: list[Any] = mail.outbox
    return outbox
