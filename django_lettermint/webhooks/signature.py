"""Verify the signature of a webhook request, and that its JSON is valid.

Needs the official SDK (extra `[webhooks]`), so only the views import it, when a URL is
made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from lettermint.exceptions import WebhookVerificationError
from lettermint.webhook import Webhook

if TYPE_CHECKING:
    from django_lettermint.conf import Secret

#: Levels of nested objects and arrays; Lettermint's events have five.
MAX_DEPTH = 64


def verify(
    body: bytes, headers: Mapping[str, str], secrets: Iterable[Secret]
) -> dict[str, Any]:
    """Return the payload if it was signed with one of `secrets` within 300 seconds.

    Raises ValueError with a reason that contains nothing of the request or the secrets.
    """
    for secret in secrets:
        try:
            payload = Webhook(secret.reveal()).verify(body, headers)
        except WebhookVerificationError as error:
            if error.reason != "signature_mismatch":
                raise ValueError(error.reason) from None
        except RecursionError:  # deeply nested JSON, which the SDK does not handle
            raise ValueError("payload_invalid") from None
        else:
            return _strict(dict(payload))
    raise ValueError("signature_mismatch")


def _strict(payload: dict[str, Any]) -> dict[str, Any]:
    # json.loads() accepts NaN, infinities (also as 1e999) and lone surrogates, which
    # are neither JSON nor UTF-8: receivers could not store the event.
    try:
        _refuse_depth(payload)
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise ValueError("payload_invalid") from None
    return payload


def _refuse_depth(payload: dict[str, Any]) -> None:
    # The depth that json can read and write differs among Python's versions.
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [
            each for each in chain.from_iterable(inner) if isinstance(each, dict | list)
        ]
        if not level:
            return
    raise ValueError
