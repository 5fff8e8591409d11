"""The option `send_defaults`: what messages have that say nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from email.headerregistry import Address
from typing import TypeAlias

from anymail.backends.base import BasePayload
from django.utils.functional import Promise

from .exceptions import LettermintInvalidMessage
from .extras import Layer, extract_extras, render, resolve
from .message import default_layer
from .rules import Invalid, wrong
from .suggestions import unknown

_Kind: TypeAlias = tuple[str, tuple[type, ...]]
_TEXT: _Kind = ("a string", (str, Promise, Address))
_LIST: _Kind = ("a list", (list, tuple))
_DICT: _Kind = ("a dict", (Mapping,))
_KINDS = {
    "from_email": _TEXT,
    "envelope_sender": _TEXT,
    "subject": _TEXT,
    "body": _TEXT,
    "to": _LIST,
    "cc": _LIST,
    "bcc": _LIST,
    "reply_to": _LIST,
    "alternatives": _LIST,
    "attachments": _LIST,
    "extra_headers": _DICT,
    "merge_metadata": _DICT,
    "merge_headers": _DICT,
}
_EXTRAS = ("route", "tag", "tags", "metadata", "esp_extra")

#: An idempotency key is not among them.
_NAMES = {
    name
    for name, *_ in BasePayload.base_message_attrs + BasePayload.anymail_message_attrs
} | {"route", "tag"}


def send_defaults(value: object) -> dict[str, object]:
    """Accept attributes of messages; a None hides a default for all of Anymail."""
    if not isinstance(value, Mapping):
        raise wrong("a dict of message attributes", value)
    for name, default in value.items():
        if name not in _NAMES:
            raise unknown(name, sorted(_NAMES))
        rule, types = _KINDS.get(name, ("", (object,)))
        if default is not None and not isinstance(default, types):
            raise wrong(rule, default, key=f"[{name!r}]")
        try:
            _check_extras(name, default)
        except LettermintInvalidMessage as error:
            problem = f"breaks a rule. {str(error).removesuffix('.')}"
            raise Invalid(problem, key=f"[{name!r}]") from None
    return dict(value)


def _check_extras(name: str, value: object) -> None:
    layer: Layer = {}
    if name in _EXTRAS:
        # Whether the unsupported is an error is another option's business.
        layer = default_layer({name: value}, lambda _: None)
    elif isinstance(value, Mapping) and name == "extra_headers":
        layer, _ = extract_extras(value)
    extras = resolve(layer)
    render(extras)
    if extras.idempotency_key is not None:
        raise LettermintInvalidMessage(
            "With one idempotency key for all, the relay would drop every message but "
            "the first: give each message its own"
        )
