"""What the value of an option must be: each rule returns it ready for use, or raises."""

from __future__ import annotations

import functools
import os
import re
import reprlib
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Any, TypeGuard, TypeVar

import idna

from django_lettermint.extras import FIELD_NAME

from .secret import Secret

T = TypeVar("T")

# poll() takes milliseconds in a C int: a socket timeout above 24 days overflows.
_MAX_SECONDS = 1_000_000
_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_PRINTABLE = re.compile(r"[!-~]+")  # ASCII without the space
_HOST_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")  # container names have underscores
_EHLO_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class Invalid(ValueError):
    """A value breaks a rule; `key` is the place inside the option, as in `["x"]`."""

    def __init__(self, problem: str, *, key: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.key = key
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Option:
    """One option; `rule` returns the value to use or raises `rules.Invalid`."""

    name: str
    rule: Callable[[Any], Any]
    _: KW_ONLY
    default: object
    doc: str
    required: bool = False

    @property
    def remedy(self) -> str:
        """Say how to mend a value that the rule refuses."""
        if self.required:
            return (
                "Copy the project's sending token from the Lettermint dashboard; "
                "if it comes from the environment, see that the variable is set."
            )
        return f"Correct it, or remove it for the default, {self.default!r}."


def wrong(rule: str, value: object, *, key: str = "") -> Invalid:
    """Build the error for a value that is not secret."""
    return Invalid(f"must be {rule}, not {reprlib.repr(value)}", key=key)


def optional(rule: Callable[[object], T]) -> Callable[[object], T | None]:
    """Let None pass besides what `rule` accepts."""
    return lambda value: None if value is None else rule(value)


def secret(value: object) -> Secret:
    """Accept a token; the error tells nothing about what was given instead."""
    if isinstance(value, str) and _PRINTABLE.fullmatch(value):
        return Secret(value)
    raise Invalid(
        "must be a string of printable ASCII characters, "
        "not empty and without spaces or line breaks"
    )


def secrets(value: object) -> tuple[Secret, ...]:
    """Accept one secret, or a list of them while an old one is being replaced."""
    if value is None:
        return ()
    if isinstance(value, (list, tuple)) and value:
        return tuple(secret(item) for item in value)
    return (secret(value),)


def flag(value: object) -> bool:
    """Accept True and False, and no stand-in such as "false" from the environment."""
    if isinstance(value, bool):
        return value
    raise wrong("True or False", value)


def word(value: object) -> str:
    """Accept a text that can stand in an SMTP line as one word."""
    if isinstance(value, str) and _PRINTABLE.fullmatch(value):
        return value
    raise wrong("a non-empty string of printable ASCII without spaces", value)


def field_name(value: object) -> str:
    """Accept what RFC 5322 section 3.6.8 allows in the name of a header."""
    if isinstance(value, str) and FIELD_NAME.fullmatch(value):
        return value
    raise wrong("a metadata key: printable ASCII without spaces and colons", value)


def one_of(*choices: str) -> Callable[[object], str]:
    """Accept one of `choices` in any letter case; return it as spelled there."""
    folded = {choice.casefold(): choice for choice in choices}

    def rule(value: object) -> str:
        if isinstance(value, str) and value.casefold() in folded:
            return folded[value.casefold()]
        raise wrong(f"one of {', '.join(map(repr, choices))}", value)

    return rule


def whole(lowest: int, highest: int | None = None) -> Callable[[object], int]:
    """Accept a whole number in the range."""
    span = f"{lowest} or more" if highest is None else f"from {lowest} to {highest}"

    def rule(value: object) -> int:
        # To Python a bool is an int, but `retries=True` is a mistake.
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and lowest <= value <= (highest or value)
        ):
            return value
        raise wrong(f"a whole number, {span}", value)

    return rule


def seconds(value: object) -> float:
    """Accept a time above 0: nothing here may wait for ever."""
    if _is_number(value) and 0 < value <= _MAX_SECONDS:
        return float(value)
    raise wrong(
        f"a number of seconds above 0 and at most {_MAX_SECONDS} (it cannot be off)",
        value,
    )


def seconds_up_to(highest: int) -> Callable[[object], float]:
    """Accept a time above 0 and not above `highest`."""

    def rule(value: object) -> float:
        if _is_number(value) and 0 < value <= highest:
            return float(value)
        raise wrong(f"a number of seconds above 0 and at most {highest}", value)

    return rule


def seconds_or_zero(value: object) -> float:
    """Accept a time that may be 0."""
    if _is_number(value) and 0 <= value <= _MAX_SECONDS:
        return float(value)
    raise wrong(f"a number of seconds from 0 to {_MAX_SECONDS}, or None", value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_loopback(name: str) -> bool:
    """Tell by the spelling alone, without DNS, whether a host is this machine."""
    if name.lower() == "localhost":
        return True
    with suppress(ValueError):
        address = ip_address(name)
        return any(address in network for network in _LOOPBACK)
    return False


def host(value: object) -> str:
    """Accept an IP address or a host name; return the latter in IDNA 2008 form."""
    if isinstance(value, str):
        with suppress(ValueError):
            return str(ip_address(value))
        with suppress(idna.IDNAError):
            name = value if value.isascii() else idna.encode(value, uts46=True).decode()
            if len(name) <= 253 and all(map(_HOST_LABEL.fullmatch, name.split("."))):
                return name
    raise wrong("a host name or IP address, without scheme and port", value)


def ehlo_name(value: object) -> str:
    """Accept what RFC 5321 section 4.1.1.1 allows after EHLO."""
    if isinstance(value, str) and len(value) <= 255:
        if value.startswith("[") and value.endswith("]"):
            with suppress(AddressValueError):
                return f"[{_address_literal(value[1:-1])}]"
        elif all(map(_EHLO_LABEL.fullmatch, value.split("."))):
            return value
    raise wrong(
        "a host name (letters, digits, dots, hyphens) or an [IP address]", value
    )


def _address_literal(text: str) -> str:
    if text[:5].upper() == "IPV6:" and "%" not in text:
        return f"IPv6:{IPv6Address(text[5:])}"
    return str(IPv4Address(text))


def ca_file(value: object) -> str:
    """Accept the path of a file with certificates that TLS can load."""
    if isinstance(value, (str, os.PathLike)):
        path = os.fsdecode(value)
        with suppress(OSError, ValueError):
            stat = os.stat(path)
            _load(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
            return path
    raise wrong("the path of an existing file with PEM certificates", value)


@functools.lru_cache(maxsize=32)
def _load(path: str, _: tuple[int, ...]) -> None:
    """Load certificates once for each state of their file: backends are made often."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
