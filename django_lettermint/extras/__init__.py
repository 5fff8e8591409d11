"""Route, tag, metadata, key and tenant: rules, layers, precedence, header lines."""

from __future__ import annotations

from .encoded_words import MAX_WORD, SHORTEST_WORD, decode, encode
from .layers import (
    IDEMPOTENCY_KEY,
    TENANT,
    TENANT_RULE,
    Extras,
    Layer,
    extract_extras,
    fields,
    is_lettermint_header,
    merge,
    render,
    resolve,
    tenant_name,
)
from .text import (
    ATOMS,
    CONTROL,
    FIELD_NAME,
    LINE_BREAK,
    MAX_LINE,
    fold,
    header_text,
    invalid_header,
    invalid_value,
    pieces,
    plain_str,
    short_repr,
    single_line,
    verbatim,
)

__all__ = ["IDEMPOTENCY_KEY", "Extras", "Layer", "extract_extras", "fields", "merge"]
__all__ += ["is_lettermint_header", "render", "resolve"]
__all__ += ["TENANT", "TENANT_RULE", "tenant_name"]
# Text of any header.
__all__ += ["ATOMS", "CONTROL", "FIELD_NAME", "LINE_BREAK"]
__all__ += ["MAX_LINE", "MAX_WORD", "SHORTEST_WORD", "decode", "encode", "fold"]
__all__ += ["header_text", "invalid_header", "invalid_value", "pieces", "plain_str"]
__all__ += ["short_repr", "single_line", "verbatim"]
