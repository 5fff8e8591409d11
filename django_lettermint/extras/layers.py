"""Route, tag, metadata and idempotency key: rules, precedence and header lines.

A layer is one source of them (message attributes, raw headers, an `extras()` block, send
defaults): a mapping with any of the keys route, tag, metadata and idempotency_key. A key
with the value None hides the values of lower layers. A layer may also name the tenant
(raw headers: `signed_tenant`), which chooses the login and is not sent.

Headers are written byte for byte. Django's own rendering cannot do that: it cuts a long
tag into encoded words (6.x) or folds after the colon (5.2), and it checks header values
only, never names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from .encoded_words import decode, encode
from .text import (
    CONTROL,
    FIELD_NAME,
    FIELD_NAME_RULE,
    LINE_BREAK,
    invalid_header,
    invalid_value,
    plain_str,
    short_repr,
    value_text,
    verbatim,
)

Layer: TypeAlias = Mapping[str, object]

ROUTE = "X-Lettermint-Route"
TAG = "X-LM-Tag"
METADATA_PREFIX = "X-LM-Metadata-"
IDEMPOTENCY_KEY = "Idempotency-Key"
#: Signed by `freeze()`, for queues; it is never sent.
TENANT = "X-Lettermint-Tenant"

_FIELDS = {
    ROUTE: "route",
    TAG: "tag",
    IDEMPOTENCY_KEY: "idempotency_key",
    TENANT: "signed_tenant",
}
_CANONICAL = {name.lower(): name for name in _FIELDS}
#: At the relay, X-LM-Tag and X-LM-Metadata-k win over these (they are Symfony Mailer's).
_ALIAS_TAG = "x-tag"
_ALIAS_METADATA_PREFIX = "x-metadata-"

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
_VALUE_RULE = "a value has no line breaks, control characters or lone surrogates"
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
                _check_text(name, value, pattern, rule)
        for key, value in self.metadata.items():
            if not FIELD_NAME.fullmatch(key):
                raise invalid_value("metadata key", key, _KEY_RULE)
            _check_value(f"metadata[{short_repr(key)}]", value)


_NONE = Extras()
_NOTHING: Mapping[str, str] = MappingProxyType({})


class _Only(dict[str, object]):
    """Metadata merged over None, which still hides the layers below."""


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


def extract_extras(
    headers: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object]]:
    """Split raw headers into a layer of extras and the other headers."""
    if not isinstance(headers, Mapping):
        raise invalid_value(
            "extra_headers", headers, "use a mapping of names to values"
        )
    if not headers:
        return {}, {}
    official: dict[str, tuple[str, object]] = {}
    aliases: dict[str, tuple[str, object]] = {}
    others: dict[str, object] = {}
    for name, given in headers.items():
        _check_name(name)
        canonical, is_alias = _canonical(name)
        if not canonical:
            others[name] = _header_value(name, given, LINE_BREAK)
            continue
        if given is None:
            rule = "give it as text; to hide what lower layers say, use the attribute"
            raise invalid_header(name, given, rule)
        value = _decoded(name, _header_value(name, given, CONTROL))
        group = aliases if is_alias else official
        other_name, other_value = group.setdefault(canonical, (name, value))
        if other_name != name and other_value != value:
            rule = f"{short_repr(other_name)} is already {short_repr(other_value)}; give one"
            raise invalid_header(name, value, rule)
    return _layer(aliases | official), others


def is_lettermint_header(name: str) -> bool:
    """Return whether a header is read by Lettermint, under its own name or an alias."""
    return bool(_canonical(name)[0])


def fields(extras: Extras) -> dict[str, str]:
    """Return the headers, each value one line of ASCII of any length."""
    values = {ROUTE: extras.route, TAG: extras.tag}
    for key, value in extras.metadata.items():
        values[METADATA_PREFIX + key] = value
    values[IDEMPOTENCY_KEY] = extras.idempotency_key
    return {
        name: _encoded(value) for name, value in values.items() if value is not None
    }


def render(extras: Extras, further_metadata: Mapping[str, str] = _NOTHING) -> bytes:
    """Write the header lines, CRLF included, without the idempotency key's.

    Further metadata is known to be valid.
    """
    lines = fields(extras)
    lines.pop(IDEMPOTENCY_KEY, None)
    for key, value in further_metadata.items():
        lines[METADATA_PREFIX + key] = value
    return b"".join([verbatim(name, text) for name, text in lines.items()])


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
    return type(below)(below | entries)  # an _Only stays one


def _check_text(name: str, value: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(value, str):
        raise invalid_value(name, value, f"it must be a str, or None; {rule}")
    if len(value) > _MAX_LENGTH or not pattern.fullmatch(value):
        raise invalid_value(name, value, rule)


def _check_value(name: str, value: str) -> None:
    if CONTROL.search(value):
        raise invalid_value(name, value, _VALUE_RULE)
    if not value or value != value.strip():
        raise invalid_value(
            name, value, "a value is not empty and has no blanks at its ends"
        )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not FIELD_NAME.fullmatch(name):
        rule = f"{FIELD_NAME_RULE}; a metadata key is part of it"
        raise invalid_value("header name", name, rule)


def _header_value(name: str, value: object, refused: re.Pattern[str]) -> object:
    """Return a value as text if it is text or an int; others are checked later."""
    is_text = isinstance(value, str) or hasattr(value, "encode") or type(value) is int
    if not is_text:
        return value
    text = value_text(f"header {short_repr(name)}", value)
    if refused.search(text):
        raise invalid_header(name, value, _VALUE_RULE)
    return text


def _canonical(name: str) -> tuple[str, bool]:
    """Return the canonical name, "" for other headers, and whether it is an alias."""
    lower = name.lower()
    if lower == _ALIAS_TAG:
        return TAG, True
    for prefix in (METADATA_PREFIX.lower(), _ALIAS_METADATA_PREFIX):
        if lower == prefix:
            raise invalid_value(
                "header name", name, "a metadata key must follow the hyphen"
            )
        if lower.startswith(prefix):
            key = name[len(prefix) :]  # its case is the key's case
            return METADATA_PREFIX + key, prefix == _ALIAS_METADATA_PREFIX
    return _CANONICAL.get(lower, ""), False


def _layer(found: Mapping[str, tuple[str, object]]) -> dict[str, object]:
    layer: dict[str, object] = {}
    metadata: dict[str, object] = {}
    for canonical, (_, value) in found.items():
        if name := _FIELDS.get(canonical):
            layer[name] = value
        else:
            metadata[canonical.removeprefix(METADATA_PREFIX)] = value
    return {**layer, "metadata": metadata} if metadata else layer


def _decoded(name: str, value: object) -> object:
    try:
        return decode(value) if isinstance(value, str) else value
    except ValueError as error:
        rule = f"{error}; give plain text"
        raise invalid_header(name, value, rule) from error


def _encoded(value: str) -> str:
    # ASCII that looks like an encoded word would be decoded on the way.
    return value if value.isascii() and "=?" not in value else " ".join(encode(value))
