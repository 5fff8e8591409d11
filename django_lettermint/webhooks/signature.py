"""Whether a webhook request is Lettermint's, and its JSON one that can be worked with.

Needs the official SDK (extra `[webhooks]`), so it is imported by the views only.
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

#: Objects and arrays inside of each other; Lettermint's events have five.
MAX_DEPTH = 64


def verify(
    body: bytes, headers: Mapping[str, str], secrets: Iterable[Secret]
) -> dict[str, Any]:
    """Return the payload that one of `secrets` signed, at most 300 seconds from now.

    Raises ValueError with a reason that holds nothing of the request or the secrets.
    """
    for secret in secrets:
        try:
            payload = Webhook(secret.reveal()).verify(body, headers)
        except WebhookVerificationError as error:
            if error.reason != "signature_mismatch":
                raise ValueError(error.reason) from None
        except RecursionError:  # which the SDK lets pass: deeply nested JSON
            raise ValueError("payload_invalid") from None
        else:
            return _strict(dict(payload))
    raise ValueError("signature_mismatch")


def _strict(payload: dict[str, Any]) -> dict[str, Any]:
    # json.loads() lets NaN, infinities (also as 1e999) and lone surrogates through. None
    # of them is JSON or UTF-8, and each would break receivers that store the event.
    try:
        _refuse_depth(payload)
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise ValueError("payload_invalid") from None
    return payload


def _refuse_depth(payload: dict[str, Any]) -> None:
    # How deep json goes differs among Python's versions; receivers go less deep.
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [
            each for each in chain.from_iterable(inner) if isinstance(each, dict | list)
        ]
        if not level:
            return
    raise ValueError
