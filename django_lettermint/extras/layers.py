"""What a message tells Lettermint beside the mail itself.

A layer is one source of it (message attributes, raw headers, an `extras()` block, send
defaults): a mapping with any of the keys route, tag, metadata and idempotency_key. A key
that is present with the value None hides what lower layers say. A layer may also name the
tenant (raw headers: `signed_tenant`), which chooses the login and is no header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .text import (
    CONTROL,
    FIELD_NAME,
    invalid_value,
    plain_str,
    short_repr,
    value_text,
)

Layer: TypeAlias = Mapping[str, object]

_MAX_LENGTH = 255
# Lettermint publishes the tag's pattern with `\s`, which matches a newline too.
_RULES = {
    "route": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*"),
        "a route slug has at most 255 ASCII letters, digits, and after the first '_', '-'",
    ),
    "tag": (
        re.compile(r"[A-Za-z0-9_-]+(?: [A-Za-z0-9_-]+)*"),
        "a tag has at most 255 ASCII letters, digits, '_', '-' and single inner spaces",
    ),
    "idempotency_key": (
        re.compile(r"[!-~](?:[ -~]*[!-~])?"),
        "an idempotency key has 1 to 255 printable ASCII characters, no outer spaces",
    ),
}
TENANT_RULE = (
    "1 to 255 characters, no control characters among them, no blanks at the ends"
)
_KEY_RULE = (
    "a metadata key becomes part of a header name: one or more printable ASCII "
    "characters without space and colon"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Valid by construction: anything that breaks a rule raises LettermintInvalidMessage."""

    route: str | None = None
    tag: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        for name, (pattern, rule) in _RULES.items():
            value = getattr(self, name)
            if value is not None:
                _check(name, value, pattern, rule)
        for key, value in self.metadata.items():
            if not FIELD_NAME.fullmatch(key):
                raise invalid_value("metadata key", key, _KEY_RULE)
            _check_value(f"metadata[{short_repr(key)}]", value)


_NONE = Extras()


class _Only(dict[str, object]):
    """Metadata laid over a None: it still hides the layers below."""


def merge(*layers: Layer) -> dict[str, object]:
    """Merge layers, lowest precedence first, into one layer that acts as all of them."""
    merged: dict[str, object] = {}
    metadata: dict[str, object] | None = {}
    for layer in layers:
        merged.update(layer)
        if "metadata" in layer:
            metadata = _merge_metadata(metadata, layer["metadata"])
            merged["metadata"] = metadata
    return merged


def resolve(*layers: Layer) -> Extras:
    """Merge layers, lowest precedence first, and validate what wins."""
    if not any(layers):
        return _NONE
    merged = merge(*layers)
    metadata = merged.get("metadata")
    entries = metadata.items() if isinstance(metadata, Mapping) else ()
    texts: dict[str, Any] = {name: plain_str(merged.get(name)) for name in _RULES}
    return Extras(
        **texts,
        metadata={
            key: value_text(f"metadata[{short_repr(key)}]", value)
            for key, value in entries
        },
    )


def tenant_name(value: object) -> str:
    """Return a tenant's name as a plain str; raise LettermintInvalidMessage for others."""
    name = plain_str(value)
    if not isinstance(name, str):
        rule = "its name must be a str, or None for no tenant"
        raise invalid_value("tenant", value, rule)
    sound = 0 < len(name) <= _MAX_LENGTH and not CONTROL.search(name)
    if not sound or name != name.strip():
        raise invalid_value("tenant", value, f"its name has {TENANT_RULE}")
    return name


def _merge_metadata(
    below: dict[str, object] | None, above: object
) -> dict[str, object] | None:
    if above is None:
        return None
    if not isinstance(above, Mapping):
        raise invalid_value(
            "metadata", above, "use a mapping of names to values, or None"
        )
    entries: dict[str, object] = {}
    for key, value in above.items():
        if not isinstance(key, str):
            raise invalid_value("metadata key", key, f"{_KEY_RULE}, given as str")
        entries[key[:]] = value
    if below is None or isinstance(above, _Only):
        return _Only(entries)
    return type(below)(below | entries)


def _check(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str):
        raise invalid_value(name, value, f"it must be a str, or None; {rule}")
    if len(value) > _MAX_LENGTH or not pattern.fullmatch(value):
        raise invalid_value(name, value, rule)


def _check_value(name: str, value: str) -> None:
    if CONTROL.search(value):
        rule = "a value has no line breaks, control characters or lone surrogates"
        raise invalid_value(name, value, rule)
    if not value or value != value.strip():
        raise invalid_value(
            name, value, "a value is not empty and has no blanks at its ends"
        )
