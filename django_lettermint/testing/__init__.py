"""A local relay that behaves as Lettermint documents, for tests and demonstrations.

Needs the extra `testing`. Nothing is imported before it is asked for: pytest loads
`fixtures` in every project that has this package, with the extra or without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import Logins, ReceivedMessage, Refusal, Statistics
    from .relay import Relay
    from .webhooks import (
        WebhookDelivery,
        WebhookEvent,
        Webhooks,
        events_for,
        make_event,
        post_event,
        sign,
    )

__all__ = [
    "Logins",
    "ReceivedMessage",
    "Refusal",
    "Relay",
    "Statistics",
    "WebhookDelivery",
    "WebhookEvent",
    "Webhooks",
    "events_for",
    "make_event",
    "post_event",
    "sign",
]

_HOME = {
    "Logins": "records",
    "ReceivedMessage": "records",
    "Refusal": "records",
    "Relay": "relay",
    "Statistics": "records",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'webhooks')}")
    except ModuleNotFoundError as error:
        error.add_note("Its extra: pip install 'django-lettermint-smtp[testing]'")
        raise
    return getattr(module, name)
