"""Read a message's Lettermint headers as the relay's documentation describes them."""

from __future__ import annotations

import binascii
import email.errors
import email.header
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .session import Refused

_FIELD = re.compile(
    rb"^(x-lettermint-route|x-lm-tag|x-tag|idempotency-key|x-lm-metadata-[^:\s]*|x-metadata-[^:\s]*)"
    rb"[ \t]*:(.*(?:\n[ \t].*)*)",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"[a-zA-Z0-9_-]+(?:\s[a-zA-Z0-9_-]+)*", re.ASCII)
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_METADATA = ("x-lm-metadata-", "x-metadata-")
_MAX_LENGTH = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedHeaders:
    """The Lettermint headers of one message."""

    route: str | None = None
    tag: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None


def parse_headers(content: bytes) -> ParsedHeaders:
    """Read the header section of a message; the body is not looked at.

    Raises Refused for an invalid or repeated header.
    """
    end = 0 if content.startswith(b"\r\n") else content.find(b"\r\n\r\n")
    fields: dict[str, str] = {}
    for match in _FIELD.finditer(content, 0, end if end >= 0 else len(content)):
        name = _name(match[1].decode("utf-8", "replace"))
        if name in fields:
            raise Refused(550, f"5.6.0 {name} occurs more than once")
        fields[name] = _value(match[2])
    return ParsedHeaders(
        route=_route(fields.get("x-lettermint-route")),
        tag=_tag(fields.get("x-lm-tag", fields.get("x-tag"))),
        metadata=_metadata(fields),
        idempotency_key=_idempotency_key(fields.get("idempotency-key")),
    )


def _name(name: str) -> str:
    """Fold the case of a field name, but for a metadata key, which keeps it."""
    prefix = next((p for p in _METADATA if name.lower().startswith(p)), name)
    return prefix.lower() + name[len(prefix) :]


def _value(raw: bytes) -> str:
    text = (
        raw.decode("utf-8", "replace").replace("\r", "").replace("\n", "").strip(" \t")
    )
    if "=?" not in text:
        return text
    try:
        return str(email.header.make_header(email.header.decode_header(text)))
    except (LookupError, UnicodeError, binascii.Error, email.errors.HeaderParseError):
        # Not a valid encoded word: RFC 2047 section 6.3 has it shown as it stands.
        return text


def _route(value: str | None) -> str | None:
    if value is not None and (len(value) > _MAX_LENGTH or not _SLUG.fullmatch(value)):
        raise Refused(550, "5.6.0 X-Lettermint-Route is not a route slug")
    return value


def _tag(value: str | None) -> str | None:
    if value is not None and (len(value) > _MAX_LENGTH or not _TAG.fullmatch(value)):
        raise Refused(550, "5.6.0 The tag is invalid")
    return value


def _metadata(fields: Mapping[str, str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for prefix in reversed(_METADATA):
        found = {k[len(prefix) :]: v for k, v in fields.items() if k.startswith(prefix)}
        metadata |= found
    if "" in metadata:
        raise Refused(550, "5.6.0 A metadata header has no key")
    return metadata


def _idempotency_key(value: str | None) -> str | None:
    if value is not None and not 1 <= len(value) <= _MAX_LENGTH:
        raise Refused(550, "5.6.0 Idempotency-Key must have 1 to 255 characters")
    return value
