"""Validators of options: each returns the value ready for use, or raises InvalidOption."""

from __future__ import annotations

import functools
import os
import re
import reprlib
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from email.headerregistry import Address
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Any, TypeAlias, TypeVar

import idna
from anymail.backends.base import BasePayload
from django.utils.functional import Promise
from django.utils.module_loading import import_string

from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.extras import (
    FIELD_NAME,
    TENANT_RULE,
    Layer,
    extract_extras,
    render,
    resolve,
    tenant_name,
)
from django_lettermint.message import default_layer

from .wrappers import Secret, unwrap

T = TypeVar("T")

# poll() takes milliseconds in a C int: a socket timeout above 24 days overflows.
_MAX_SECONDS = 1_000_000
_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_PRINTABLE = re.compile(r"[!-~]+")  # ASCII without the space
_HOST_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")  # container names have underscores
_EHLO_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

#: Names of options in Django's SMTP backend and in other packages.
_SYNONYMS = {
    "use_tls": "security",
    "use_ssl": "security",
    "user": "username",
    "password": "api_token",
    "token": "api_token",
    "api_key": "api_token",
    "webhook_secret": "signing_secret",
}


class InvalidOption(ValueError):
    """A value breaks a rule; `key` is the place inside the option, as in `["x"]`."""

    def __init__(self, problem: str, *, key: str = "", remedy: str = "") -> None:
        super().__init__(problem)
        self.key = key
        self.remedy = remedy


def invalid_value(rule: str, value: object, *, key: str = "") -> InvalidOption:
    """Make the error for a value that is not secret."""
    return InvalidOption(f"must be {rule}, not {reprlib.repr(value)}", key=key)


def unknown_name(name: object, known: Iterable[str]) -> InvalidOption:
    """Make the error for a key that a dict of options does not know."""
    remedy = suggestion(name, known)
    return InvalidOption("is not an option here", key=f"[{name!r}]", remedy=remedy)


def suggestion(
    name: object, known: Iterable[str], *, spell: Callable[[str], str] = str
) -> str:
    """Return a similar name, or all that are known, as a sentence."""
    names = list(known)
    synonym = _SYNONYMS.get(str(name), "")
    close = [synonym] if synonym in names else get_close_matches(str(name), names, n=1)
    if close:
        return f"Did you mean {spell(close[0])!r}?"
    return f"Known are {', '.join(map(spell, names))}."


def optional(validate: Callable[[object], T]) -> Callable[[object], T | None]:
    """Let None pass besides what `validate` accepts."""
    return lambda value: None if value is None else validate(value)


def secret(value: object) -> Secret:
    """Accept a token; the error does not show what was given instead."""
    if isinstance(value, Secret):
        return value
    if isinstance(value, str) and _PRINTABLE.fullmatch(value):
        return Secret(value)
    raise InvalidOption(
        "must be a string of printable ASCII characters, "
        "not empty and without spaces or line breaks"
    )


def secrets(value: object) -> tuple[Secret, ...]:
    """Accept one secret, or a list of them while an old one is replaced; none if empty."""
    if isinstance(value, (list, tuple)):
        return tuple(secret(unwrap(item)) for item in value)
    return () if value is None or value == "" else (secret(value),)


def checked(
    rule: str, holds: Callable[[Any], object], convert: Callable[[Any], T] | None = None
) -> Callable[[object], Any]:
    """Make a validator that accepts what `holds` is true for."""

    def validate(value: object) -> Any:
        if holds(value):
            return convert(value) if convert else value
        raise invalid_value(rule, value)

    return validate


#: True or False, not a substitute such as "false" from the environment.
flag = checked("True or False", lambda value: isinstance(value, bool))

#: A text that can stand in an SMTP line as one word.
word = checked(
    "a non-empty string of printable ASCII without spaces",
    lambda value: isinstance(value, str) and _PRINTABLE.fullmatch(value),
)

#: What RFC 5322 section 3.6.8 allows in the name of a header.
field_name = checked(
    "a metadata key: printable ASCII without spaces and colons",
    lambda value: isinstance(value, str) and FIELD_NAME.fullmatch(value),
)


def one_of(*choices: str) -> Callable[[object], Any]:
    """Accept one of `choices` in any letter case; return it as spelled there."""
    folded = {choice.casefold(): choice for choice in choices}
    return checked(
        f"one of {', '.join(map(repr, choices))}",
        lambda value: isinstance(value, str) and value.casefold() in folded,
        lambda value: folded[value.casefold()],
    )


def whole_number(lowest: int, highest: int = sys.maxsize) -> Callable[[object], Any]:
    """Accept a whole number in the range."""
    limited = highest < sys.maxsize
    span = f"from {lowest} to {highest}" if limited else f"{lowest} or more"
    return checked(
        f"a whole number, {span}",
        lambda value: _is_number(value, int) and lowest <= value <= highest,
    )


def seconds_up_to(highest: int, remark: str = "") -> Callable[[object], Any]:
    """Accept a time above 0 and not above `highest`."""
    return checked(
        f"a number of seconds above 0 and at most {highest}{remark}",
        lambda value: _is_number(value, int, float) and 0 < value <= highest,
        float,
    )


#: A time above 0: every wait is limited.
seconds = seconds_up_to(_MAX_SECONDS, " (it cannot be off)")

seconds_or_zero = checked(
    f"a number of seconds from 0 to {_MAX_SECONDS}, or None",
    lambda value: _is_number(value, int, float) and 0 <= value <= _MAX_SECONDS,
    float,
)


def _is_number(value: object, *types: type) -> bool:
    # To Python a bool is an int, but `retries=True` is a mistake.
    return isinstance(value, types) and not isinstance(value, bool)


def is_loopback(name: str) -> bool:
    """Return whether a host is this machine, by its spelling alone, without DNS."""
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
    raise invalid_value("a host name or IP address, without scheme and port", value)


def ehlo_name(value: object) -> str:
    """Accept what RFC 5321 section 4.1.1.1 allows after EHLO."""
    if isinstance(value, str) and len(value) <= 255:
        if value.startswith("[") and value.endswith("]"):
            with suppress(AddressValueError):
                return f"[{_address_literal(value[1:-1])}]"
        elif all(map(_EHLO_LABEL.fullmatch, value.split("."))):
            return value
    raise invalid_value(
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
    raise invalid_value("the path of an existing file with PEM certificates", value)


@functools.lru_cache(maxsize=32)
def _load(path: str, _: tuple[int, ...]) -> None:
    """Load certificates once for each state of their file: backends are made often."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)


def idna_encoder(value: object) -> Callable[[str], str]:
    """Accept what Anymail's setting IDNA_ENCODER may be; return the function."""
    if callable(value):
        return value
    if isinstance(value, str):
        if value in _IDNA_ENCODERS:
            return _IDNA_ENCODERS[value]
        with suppress(ImportError):
            if value == "uts46":  # the package of that name
                encode = import_string("uts46.encode")
                return lambda domain: encode(domain).decode("ascii")
            if callable(found := import_string(value)):
                return found  # type: ignore[no-any-return] # an imported function
    raise invalid_value(
        '"idna2008", "idna2003", "uts46" (with the package uts46), "none", '
        "a function or the path of one",
        value,
    )


_IDNA_ENCODERS: dict[str, Callable[[str], str]] = {
    "idna2008": lambda domain: idna.encode(domain, uts46=True).decode("ascii"),
    "idna2003": lambda domain: domain.encode("idna").decode("ascii"),
    "none": lambda domain: domain,
}


def resolver(value: object) -> Callable[..., Any]:
    """Accept a function, or the path of one, which is imported."""
    found = value
    if isinstance(value, str):
        try:
            found = import_string(value)
        except Exception as error:  # noqa: BLE001 - the module's own, any kind
            reason = f"{type(error).__name__}: {error}"
            problem = f"must be what can be imported, and {value!r} cannot ({reason})"
            raise InvalidOption(problem) from None
    if callable(found):
        return found
    # Not the value: a dict of tenants holds their tokens.
    problem = f"must be a function or the path of one, not {type(found).__name__}"
    if isinstance(found, Mapping):
        problem += "; a dict's look-up is one: {…}.__getitem__"
    raise InvalidOption(problem)


def tenant(value: object) -> str:
    """Accept the name of a tenant."""
    with suppress(LettermintInvalidMessage):
        return tenant_name(value)
    raise invalid_value(f"a name: {TENANT_RULE}", value)


def attributes(value: object) -> dict[str, object]:
    """Accept a dict, without validating what it holds."""
    if not isinstance(value, Mapping):
        raise invalid_value("a dict of message attributes", value)
    return dict(value)


_Kind: TypeAlias = tuple[str, tuple[type, ...]]
_TEXT: _Kind = ("a string", (str, Promise, Address))
_LIST: _Kind = ("a list", (list, tuple))
_DICT: _Kind = ("a dict", (Mapping,))
_KINDS = {
    "from_email": _TEXT,
    "envelope_sender": _TEXT,
    "subject": _TEXT,
    "body": _TEXT,
    "to": _LIST,
    "cc": _LIST,
    "bcc": _LIST,
    "reply_to": _LIST,
    "alternatives": _LIST,
    "attachments": _LIST,
    "extra_headers": _DICT,
    "merge_metadata": _DICT,
    "merge_headers": _DICT,
}
_EXTRAS = ("route", "tag", "tags", "metadata", "esp_extra")

#: An idempotency key is not among them.
_NAMES = {
    name
    for name, *_ in BasePayload.base_message_attrs + BasePayload.anymail_message_attrs
} | {"route", "tag"}


def send_defaults(value: object) -> dict[str, object]:
    """Accept attributes of messages; a None hides a default for all of Anymail."""
    defaults = attributes(value)
    for name, default in defaults.items():
        if name not in _NAMES:
            raise unknown_name(name, sorted(_NAMES))
        rule, types = _KINDS.get(name, ("", (object,)))
        if default is not None and not isinstance(default, types):
            raise invalid_value(rule, default, key=f"[{name!r}]")
        try:
            _check_extras(name, default)
        except LettermintInvalidMessage as error:
            problem = f"breaks a rule. {str(error).removesuffix('.')}"
            raise InvalidOption(problem, key=f"[{name!r}]") from None
    return defaults


def _check_extras(name: str, value: object) -> None:
    layer: Layer = {}
    if name in _EXTRAS:
        # The option `ignore_unsupported_features` decides whether that is an error.
        layer = default_layer({name: value}, lambda _: None)
    elif isinstance(value, Mapping) and name == "extra_headers":
        layer, _ = extract_extras(value)
    extras = resolve(layer)
    render(extras)
    if "signed_tenant" in layer:
        raise LettermintInvalidMessage(
            "The tenant of messages that name none is the option `tenant`"
        )
    if extras.idempotency_key is not None:
        raise LettermintInvalidMessage(
            "With one idempotency key for all, the relay would drop every message but "
            "the first: give each message its own"
        )
