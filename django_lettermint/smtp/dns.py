"""Name look-ups that cannot hang a request: the C library's own take no timeout."""

from __future__ import annotations

import functools
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

#: Seconds for this machine's own name; without it an address literal serves.
_FQDN_TIMEOUT = 2.0
_EHLO_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")

#: The name, once it is known.
_own_name: list[str] = []

#: family, socket type, protocol, canonical name, address: as `getaddrinfo` gives them.
AddressInfo = tuple[Any, Any, int, str, Any]


def resolve(host: str, port: int, until: float) -> list[AddressInfo]:
    """Look up a host before `until` (monotonic); raise OSError, TimeoutError."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        return look_up(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return _before(until, look_up)


def fqdn(until: float) -> str:
    """Return this machine's name for EHLO (RFC 5321 section 4.1.3), looked up once.

    Answers before `until` (monotonic), by an address literal if need be.
    """
    if not _own_name:
        name = _ehlo_name(min(until, time.monotonic() + _FQDN_TIMEOUT), socket.getfqdn)
        if time.monotonic() >= until:
            return name  # cut short: not for good
        _own_name.append(name)
    return _own_name[0]


def _ehlo_name(until: float, look_up: Callable[[], str]) -> str:
    try:
        name = _before(until, look_up)
    except OSError:
        name = ""
    return name if _EHLO_NAME.fullmatch(name) else "[127.0.0.1]"


def _before(until: float, look_up: Callable[[], _T]) -> _T:
    """Wait for a look-up in a thread of its own, which is left behind if it hangs."""
    answers: list[_T] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            answers.append(look_up())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="lettermint-resolver", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no new threads while Python exits
        run()
    else:
        thread.join(max(0.0, until - time.monotonic()))
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError("the name look-up timed out")
    return answers[0]
