"""How headers are parsed and folded: the standard library's policy, set for speed.

Django 6.x renders by a policy. The standard one makes a class for each header and parses
what is plain already; whatever is not plain is left to it.
"""

from __future__ import annotations

import functools
import re
from datetime import datetime, timedelta
from email.headerregistry import BaseHeader, HeaderRegistry
from email.policy import EmailPolicy
from email.utils import format_datetime
from typing import Any

from .headers import MAX_LINE

#: Headers that Django writes of a message's addresses.
ADDRESS_LISTS = frozenset({"from", "to", "cc", "reply-to"})

#: Characters of a line that is folded no further (RFC 5322 section 2.1.1).
FOLD_AT = 78
#: Values that come out as they go in.
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*")
_ADDRESS = re.compile(
    r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
)
_MESSAGE_ID = re.compile(r"<[A-Za-z0-9_+.-]+@[A-Za-z0-9_.-]+>")
_MIME = re.compile(r"""[a-z0-9]+(?:[/.+-][a-z0-9]+)*(?:; charset="[a-z0-9-]+")?""")
#: Structured headers that the registry takes for free text (RFC 2369, 5322, 8058).
_STRUCTURED = re.compile("list-.*|references|in-reply-to", re.IGNORECASE)
_MIME_HEADERS = {
    "content-type",
    "content-transfer-encoding",
    "content-disposition",
    "mime-version",
}


class _Known(str):
    """A folded header value that is written as it is."""

    __slots__ = ()


class _Registry(HeaderRegistry):
    """Makes each header class once."""

    @functools.cache  # noqa: B019 - one registry, for good
    def __getitem__(self, name: str) -> type[BaseHeader]:
        return super().__getitem__(name.lower())


registry = _Registry()


@functools.cache
def _is_unstructured(name: str) -> bool:
    return registry.registry.get(name) is None or name == "subject"


class Policy(EmailPolicy):
    """`email.policy.SMTP`, but ASCII in structured headers is not encoded for length.

    The standard one turns any word over 77 characters, a List-Unsubscribe link or an
    address, into encoded words, which RFC 2047 section 5 allows in free text only.
    """

    def fold_binary(self, name: str, value: str) -> bytes:
        folded = super().fold_binary(name, value)
        if b"=?" not in folded or "=?" in value or not value.isascii():
            return folded
        if _is_unstructured(name.lower()) and not _STRUCTURED.fullmatch(name):
            return folded
        return EmailPolicy.fold_binary(
            self.clone(max_line_length=MAX_LINE), name, value
        )


class FastPolicy(Policy):
    """The same, but plain header values stay text and are not parsed."""

    def header_max_count(self, name: str) -> int | None:
        max_count: int | None = getattr(registry[name], "max_count")  # noqa: B009
        return max_count

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        if isinstance(value, datetime):
            return name, _Known(date_text(value))
        is_text = isinstance(value, str) and not isinstance(value, BaseHeader)
        if is_text and (text := plain(name, value)):
            return name, _Known(text)
        return super().header_store_parse(name, value)

    def header_fetch_parse(self, name: str, value: Any) -> Any:
        # Nobody asks a header for its parts while a message is built and written.
        return "".join(value.splitlines()) if "\n" in value else value

    def fold_binary(self, name: str, value: str) -> bytes:
        if type(value) is _Known:
            return f"{name}: {value}\r\n".encode("ascii")
        return super().fold_binary(name, value)


def date_text(date: datetime) -> str:
    """Write a date as mail does; the mails of a second share the work."""
    # Equal dates of two zones are written differently.
    return _date_text(date.replace(microsecond=0), date.utcoffset())


@functools.lru_cache(maxsize=8)
def _date_text(date: datetime, _: timedelta | None) -> str:
    return format_datetime(date)


def plain(name: str, value: str) -> str | None:
    """Return the folded value if it is plain enough to be known, else None."""
    lower = name.lower()
    if lower in ADDRESS_LISTS:
        return _folded_addresses(name, value)
    if len(name) + 2 + len(value) > FOLD_AT - 2:
        return None
    if lower == "message-id":
        form = _MESSAGE_ID
    elif lower in _MIME_HEADERS:
        form = _MIME
    elif _is_unstructured(lower) and "=?" not in value:
        form = _WORDS
    else:
        return None
    return value if form.fullmatch(value) else None


def _folded_addresses(name: str, value: str) -> str | None:
    """Fold bare addresses as the standard policy does: as many a line as fit."""
    if len(value) < FOLD_AT < len(name) + 2 + len(value):
        return None  # all of it goes on the second line
    lines: list[str] = []
    line = f"{name}:"
    for address in value.split(", "):
        if not _ADDRESS.fullmatch(address):
            return None
        if len(line) + 1 + len(address) > FOLD_AT:
            if line == f"{name}:":
                return None
            lines.append(line)
            line = ""
        line = f"{line} {address},"
        if len(line) > FOLD_AT:
            return None  # the address fits, its comma does not
    lines.append(line[:-1])
    return "\r\n".join(lines)[len(name) + 2 :]
