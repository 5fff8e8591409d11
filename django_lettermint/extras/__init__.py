"""Route, tag, metadata and idempotency key: rules, layers, precedence, header lines."""

from __future__ import annotations

from .encoded_words import MAX_WORD, decode, encode
from .layers import Extras, Layer, merge, resolve
from .lines import (
    IDEMPOTENCY_KEY,
    MAX_LINE,
    extract_extras,
    fields,
    fold,
    idempotency_line,
    is_lettermint_header,
    metadata_line,
    pieces,
    render,
)
from .text import (
    CONTROL,
    FIELD_NAME,
    LINE_BREAK,
    invalid_value,
    plain_str,
    short_repr,
    value_text,
)

__all__ = [
    "CONTROL",
    "FIELD_NAME",
    "IDEMPOTENCY_KEY",
    "LINE_BREAK",
    "MAX_LINE",
    "MAX_WORD",
    "Extras",
    "Layer",
    "decode",
    "encode",
    "extract_extras",
    "fields",
    "fold",
    "idempotency_line",
    "invalid_value",
    "is_lettermint_header",
    "merge",
    "metadata_line",
    "pieces",
    "plain_str",
    "render",
    "resolve",
    "short_repr",
    "value_text",
]
