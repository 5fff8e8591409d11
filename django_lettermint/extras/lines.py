"""Lettermint's headers, read from `extra_headers` and written byte for byte.

Django's own rendering cannot write them: it cuts a long tag into encoded words (6.x) or
folds after the colon (5.2), and it checks header values only, never names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from .encoded_words import decode, encode
from .text import (
    CONTROL,
    FIELD_NAME,
    FIELD_NAME_RULE,
    LINE_BREAK,
    invalid_value,
    short_repr,
    value_text,
)

if TYPE_CHECKING:
    from .layers import Extras

ROUTE = "X-Lettermint-Route"
TAG = "X-LM-Tag"
METADATA_PREFIX = "X-LM-Metadata-"
IDEMPOTENCY_KEY = "Idempotency-Key"
#: Signed by `freeze()`, for queues; it is never sent.
TENANT = "X-Lettermint-Tenant"

#: RFC 5322 section 2.1.1: octets in a line, CRLF not counted.
MAX_LINE = 998

_NOTHING: Mapping[str, str] = MappingProxyType({})
_ONE_SPACE = re.compile(" [^ \t]")

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


def extract_extras(
    headers: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object]]:
    """Divide raw headers into the layer of extras that they hold and the others."""
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
            others[name] = _checked(name, given, LINE_BREAK)
            continue
        if given is None:
            rule = "give it as text; to hide what lower layers say, use the attribute"
            raise invalid_value(f"header {short_repr(name)}", given, rule)
        value = _decoded(name, _checked(name, given, CONTROL))
        group = aliases if is_alias else official
        other_name, other_value = group.setdefault(canonical, (name, value))
        if other_name != name and other_value != value:
            rule = f"{short_repr(other_name)} is already {short_repr(other_value)}; give one"
            raise invalid_value(f"header {short_repr(name)}", value, rule)
    return _layer(aliases | official), others


def is_lettermint_header(name: str) -> bool:
    """Return whether a header is read by Lettermint, under its own name or an alias."""
    return bool(_canonical(name)[0])


def fields(extras: Extras) -> dict[str, str]:
    """Make the headers, each value one line of ASCII whatever its length."""
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


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not FIELD_NAME.fullmatch(name):
        rule = f"{FIELD_NAME_RULE}; a metadata key is part of it"
        raise invalid_value("header name", name, rule)


def _checked(name: str, value: object, refused: re.Pattern[str]) -> object:
    """Return a value as text if it is text or an int; others are checked later."""
    is_text = isinstance(value, str) or hasattr(value, "encode") or type(value) is int
    if not is_text:
        return value
    text = value_text(f"header {short_repr(name)}", value)
    if refused.search(text):
        rule = "a value has no line breaks, control characters or lone surrogates"
        raise invalid_value(f"header {short_repr(name)}", value, rule)
    return text


def _canonical(name: str) -> tuple[str, bool]:
    """Return our spelling of a header ("" for others') and whether it is an alias."""
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
        if field := _FIELDS.get(canonical):
            layer[field] = value
        else:
            metadata[canonical.removeprefix(METADATA_PREFIX)] = value
    return {**layer, "metadata": metadata} if metadata else layer


def _decoded(name: str, value: object) -> object:
    try:
        return decode(value) if isinstance(value, str) else value
    except ValueError as error:
        rule = f"{error}; give plain text"
        raise invalid_value(f"header {short_repr(name)}", value, rule) from error


def _encoded(value: str) -> str:
    # ASCII that looks like an encoded word would be decoded on the way.
    return value if value.isascii() and "=?" not in value else " ".join(encode(value))


def verbatim(name: str, text: str, width: int = MAX_LINE) -> bytes:
    """Write a field as it is, folded at its blanks if it is wider."""
    if len(name) + len(": ") + len(text) <= width:
        return f"{name}: {text}\r\n".encode()
    return fold(name, pieces(f" {text}"), width)


def pieces(text: str) -> list[str]:
    """Divide a field's value where a line may end: each piece begins with its blanks."""
    found = re.findall(r"[ \t]*[^ \t]+|[ \t]+", text)
    if len(found) > 1 and not found[-1].strip(" \t"):
        # No line may have nothing but blanks.
        found[-2:] = ["".join(found[-2:])]
    return found


def fold(name: str, value: Iterable[str], width: int) -> bytes:
    """Write a field, CRLF included: lines end before pieces, unfolding gives all back.

    No line ends behind the colon, and none that needs not. Raises
    LettermintInvalidMessage for a line over 998 octets (RFC 5322 section 2.1.1).
    """
    first, *others = value
    lines, line = [], [f"{name}:{first}"]
    for piece in others:
        line.append(piece)
        if sum(map(len, line)) > width:
            # Some readers make one space of a fold and all blanks around it.
            positions = range(len(line) - 1, 0, -1)
            end = next((at for at in positions if _ONE_SPACE.match(line[at])), 0)
            if not end or sum(map(len, line[end:])) > width:
                end = len(line) - 1
            lines.append("".join(line[:end]))
            line = line[end:]
    octets = "\r\n".join([*lines, "".join(line), ""]).encode()
    if len(octets) > MAX_LINE and max(map(len, octets.split(b"\r\n"))) > MAX_LINE:
        rule = f"a line of it is over {MAX_LINE} octets (RFC 5322) and has no space to fold it at"
        raise invalid_value(
            f"header {short_repr(name)}", "".join([first, *others]).lstrip(), rule
        )
    return octets
