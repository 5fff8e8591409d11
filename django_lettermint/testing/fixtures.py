"""Fixtures for pytest, found by it through the entry point `django_lettermint`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

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
