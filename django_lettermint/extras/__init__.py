"""Route, tag, metadata, key and tenant: rules, layers, precedence, header lines."""

from __future__ import annotations

from .encoded_words import MAX_WORD, SHORTEST_WORD, decode, encode
from .layers import TENANT_RULE, Extras, Layer, merge, resolve, tenant_name
from .lines import (
    IDEMPOTENCY_KEY,
    MAX_LINE,
    TENANT,
    extract_extras,
    fields,
    fold,
    is_lettermint_header,
    pieces,
    render,
    verbatim,
)
from .text import (
    ATOMS,
    CONTROL,
    FIELD_NAME,
    LINE_BREAK,
    header_text,
    invalid_header,
    invalid_value,
    plain_str,
    short_repr,
    single_line,
)

__all__ = ["IDEMPOTENCY_KEY", "Extras", "Layer", "extract_extras", "fields", "merge"]
__all__ += ["is_lettermint_header", "render", "resolve"]
__all__ += ["TENANT", "TENANT_RULE", "tenant_name"]
# Text of any header.
__all__ += ["ATOMS", "CONTROL", "FIELD_NAME", "LINE_BREAK"]
__all__ += ["MAX_LINE", "MAX_WORD", "SHORTEST_WORD", "decode", "encode", "fold"]
__all__ += [
    "header_text",
    "invalid_header",
    "invalid_value",
    "pieces",
    "plain_str",
    "short_repr",
]
__all__ += ["single_line", "verbatim"]
