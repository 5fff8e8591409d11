"""Lettermint's headers, read from `extra_headers` and written byte for byte.

Django's own rendering cannot write them: it cuts a long tag into encoded words (6.x) or
folds after the colon (5.2), and it checks header values only, never names.
"""

from __future__ import annotations

import functools
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from email.errors import HeaderParseError
from email.header import decode_header

from .extras import CONTROL, FIELD_NAME, Extras, invalid, plain, shown

ROUTE = "X-Lettermint-Route"
TAG = "X-LM-Tag"
METADATA_PREFIX = "X-LM-Metadata-"
IDEMPOTENCY_KEY = "Idempotency-Key"

#: RFC 5322 section 2.1.1: octets in a line, CRLF not counted.
MAX_LINE = 998

_FIELDS = {ROUTE: "route", TAG: "tag", IDEMPOTENCY_KEY: "idempotency_key"}
_CANONICAL = {name.lower(): name for name in _FIELDS}
#: At the relay, X-LM-Tag and X-LM-Metadata-k win over these (they are Symfony Mailer's).
_ALIAS_TAG = "x-tag"
_ALIAS_METADATA_PREFIX = "x-metadata-"

# RFC 2047 section 2: =?charset?encoding?text?=, at most 75 characters. What is over
# after `=?utf-8?b?` and `?=` holds 60 characters of base64, hence 45 octets.
_WORD_OCTETS = 45
_WORD = r"=\?[!->@-~]+\?[BbQq]\?[!->@-~]*\?="
_ENCODED = re.compile(rf"(?<!\S){_WORD}(?: +{_WORD})*(?!\S)")


def split(headers: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Part raw headers into the layer of extras they hold and the other headers."""
    if not isinstance(headers, Mapping):
        raise invalid("extra_headers", headers, "use a mapping of names to values")
    official: dict[str, tuple[str, object]] = {}
    aliases: dict[str, tuple[str, object]] = {}
    others: dict[str, object] = {}
    for name, given in headers.items():
        value = _checked(name, given)
        canonical, is_alias = _canonical(name)
        if not canonical:
            others[name] = value
            continue
        if value is None:
            rule = "give it as text; to hide what lower layers say, use the attribute"
            raise invalid(f"header {shown(name)}", value, rule)
        value = _decoded(name, value)
        group = aliases if is_alias else official
        other_name, other_value = group.setdefault(canonical, (name, value))
        if other_value != value:
            rule = f"{shown(other_name)} already says {shown(other_value)}; give one"
            raise invalid(f"header {shown(name)}", value, rule)
    return _layer(aliases | official), others


def is_ours(name: str) -> bool:
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


def render(extras: Extras) -> bytes:
    """Write the header lines, CRLF included, without the idempotency key's."""
    lines = fields(extras)
    lines.pop(IDEMPOTENCY_KEY, None)
    return b"".join(_line(name, text) for name, text in lines.items())


def metadata_line(key: str, value: str) -> bytes:
    """Write one more line of metadata that is known to be valid."""
    return _line(METADATA_PREFIX + key, value)


@functools.lru_cache(maxsize=256)
def idempotency_line(key: str) -> bytes:
    """Write the idempotency key's header line, CRLF included, the key as it is."""
    Extras(idempotency_key=key)  # an envelope from a queue was not checked here
    return f"{IDEMPOTENCY_KEY}: {key}\r\n".encode("ascii")


def _checked(name: object, value: object) -> object:
    if not isinstance(name, str) or not FIELD_NAME.fullmatch(name):
        rule = "it has one or more printable ASCII characters without space and colon"
        raise invalid("header name", name, f"{rule}; a metadata key is part of it")
    rule = "a value has no line breaks, control characters or lone surrogates"
    try:
        text = str(plain(value))
    except ValueError as error:  # an int beyond sys.get_int_max_str_digits()
        raise invalid(f"header {shown(name)}", value, "it is too long") from error
    if CONTROL.search(text.replace("\t", " ")):
        raise invalid(f"header {shown(name)}", value, rule)
    # A lazy string of Django's is no str, but has all its methods.
    is_text = isinstance(value, str) or hasattr(value, "encode") or type(value) is int
    return text if is_text else value


def _canonical(name: str) -> tuple[str, bool]:
    """Return our spelling of a header ("" for others') and whether it is an alias."""
    lower = name.lower()
    if lower == _ALIAS_TAG:
        return TAG, True
    for prefix in (METADATA_PREFIX.lower(), _ALIAS_METADATA_PREFIX):
        if lower == prefix:
            raise invalid("header name", name, "a metadata key must follow the hyphen")
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
    """Decode RFC 2047 words; what is no text is left to the rules of `Extras`."""

    def decode(match: re.Match[str]) -> str:
        try:
            parts = decode_header(match[0])
            return "".join(octets.decode(charset) for octets, charset in parts)
        except (HeaderParseError, LookupError, UnicodeError) as error:
            rule = "its RFC 2047 encoded words cannot be decoded; give plain text"
            raise invalid(f"header {shown(name)}", value, rule) from error

    return _ENCODED.sub(decode, value) if isinstance(value, str) else value


def _encoded(value: str) -> str:
    # ASCII that looks like an encoded word would be decoded on the way.
    if value.isascii() and "=?" not in value:
        return value
    return " ".join(
        f"=?utf-8?b?{b64encode(chunk).decode()}?=" for chunk in _chunks(value)
    )


def _chunks(value: str) -> Iterator[bytes]:
    chunk = b""
    for character in value:
        octets = character.encode()
        if len(chunk) + len(octets) > _WORD_OCTETS:
            yield chunk
            chunk = b""
        chunk += octets
    yield chunk


def _line(name: str, text: str) -> bytes:
    if len(name) + 2 + len(text) <= MAX_LINE:
        return f"{name}: {text}\r\n".encode("ascii")
    lines = [f"{name}: "]
    # Each piece takes the spaces before its word along, so that no line ends in blanks
    # or has nothing else, and unfolding (dropping the CRLF) gives the text back.
    for piece in re.findall(" *[^ ]+", text):
        if len(lines[-1]) + len(piece) > MAX_LINE and piece.startswith(" "):
            lines.append("")
        lines[-1] += piece
    if max(map(len, lines)) > MAX_LINE:
        rule = f"its line is over {MAX_LINE} octets and has no space to fold it at"
        raise invalid(f"header {shown(name)}", text, rule)
    return "\r\n".join([*lines, ""]).encode("ascii")
