"""What the tests of connecting share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from django_lettermint.exceptions import (
    LettermintError,
)
from django_lettermint.smtp import RelayState, Session, connect
from tests.faultserver import (
    TOKEN,
    FaultServer,
)
from tests.sending import (
    relay,
)

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig

TLS_MODES = ["implicit", "starttls"]
MECHANISMS = ["PLAIN", "LOGIN", "CRAM-MD5"]


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def connect_with(
    config: RelayConfig, *, seconds: float = 5.0, **others: Any
) -> Session:
    """Connect; the test closes the session."""
    state = others.pop("state", None) or RelayState()
    return connect(
        config.endpoint, state, until=soon(seconds), timeout=config.timeout, **others
    )


def failure_with(config: RelayConfig, **others: Any) -> Any:
    """Return the error that connecting ends with."""
    with pytest.raises(LettermintError) as raised:
        connect_with(config, **others)
    assert raised.value.retry_safe
    assert TOKEN not in str(raised.value)
    return raised.value


def failure(server: FaultServer, *, seconds: float = 5.0, **options: Any) -> Any:
    return failure_with(relay(server, **options), seconds=seconds)
