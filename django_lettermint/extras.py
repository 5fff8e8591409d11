"""What a message tells Lettermint beside the mail itself.

A layer is one source of it (message attributes, raw headers, an `extras()` block, send
defaults): a mapping with any of the keys route, tag, metadata and idempotency_key. A key
that is present with the value None hides what lower layers say.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from .exceptions import LettermintInvalidMessage

Layer: TypeAlias = Mapping[str, object]

#: RFC 5322 section 3.6.8: ftext, printable ASCII without the colon.
FIELD_NAME = re.compile(r"[!-9;-~]+")
#: What splits lines or cannot be encoded: C0, DEL, C1, U+2028, U+2029, lone surrogates.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_MAX_LENGTH = 255
#: Python refuses to print longer integers, and no header line could hold them.
_MAX_INT_BITS = 4096

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
_KEY_RULE = (
    "a metadata key becomes part of a header name: one or more printable ASCII "
    "characters without space and colon"
)
_VALUE_TYPES = "use str, int, float, bool, Decimal, UUID, date or datetime"


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
                raise invalid("metadata key", key, _KEY_RULE)
            _check_value(f"metadata[{shown(key)}]", value)


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
    texts: dict[str, Any] = {name: plain(merged.get(name)) for name in _RULES}
    return Extras(
        **texts, metadata={key: _value_text(key, value) for key, value in entries}
    )


def invalid(what: str, value: object, rule: str) -> LettermintInvalidMessage:
    """Make the error for a value that breaks a rule."""
    return LettermintInvalidMessage(f"{what}: {shown(value)} cannot be sent: {rule}.")


def shown(value: object) -> str:
    """Make the bounded repr of a value for an error text."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an int beyond sys.get_int_max_str_digits()
        return f"<{type(value).__name__}>"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def plain(value: object) -> object:
    """Turn a str subclass into the text it holds; leave other values alone."""
    # str() of an Enum member that is a str gives its name; a slice is always its text.
    return value[:] if isinstance(value, str) else value


def _merge_metadata(
    below: dict[str, object] | None, above: object
) -> dict[str, object] | None:
    if above is None:
        return None
    if not isinstance(above, Mapping):
        raise invalid("metadata", above, "use a mapping of names to values, or None")
    entries: dict[str, object] = {}
    for key, value in above.items():
        if not isinstance(key, str):
            raise invalid("metadata key", key, f"{_KEY_RULE}, given as str")
        entries[key[:]] = value
    if below is None or isinstance(above, _Only):
        return _Only(entries)
    return type(below)(below | entries)


def _value_text(key: str, value: object) -> str:
    match value:
        case str():
            return value[:]
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() <= _MAX_INT_BITS:
            return int.__repr__(value)
        case float():
            return float.__repr__(value)
        case Decimal() | UUID():
            return str(value)
        case date():
            return value.isoformat()
    raise invalid(f"metadata[{shown(key)}]", value, _VALUE_TYPES)


def _check(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str):
        raise invalid(name, value, f"it must be a str, or None; {rule}")
    if len(value) > _MAX_LENGTH or not pattern.fullmatch(value):
        raise invalid(name, value, rule)


def _check_value(name: str, value: str) -> None:
    if CONTROL.search(value):
        rule = "a value has no line breaks, control characters or lone surrogates"
        raise invalid(name, value, rule)
    if not value or value != value.strip():
        raise invalid(name, value, "a value is not empty and has no blanks at its ends")
