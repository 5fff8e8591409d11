"""Name look-ups with a time limit, which the C library's own functions lack."""

from __future__ import annotations

import functools
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

#: Seconds for this machine's own name.
_OWN_NAME_TIMEOUT = 2.0
#: With a dot, and no IP address: servers refuse `localhost` and the like (RFC 5321
#: section 4.1.4).
_FQDN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+"
    r"[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
)

#: family, socket type, protocol, canonical name, address: as `getaddrinfo` gives them.
AddressInfo = tuple[Any, Any, int, str, Any]


def resolve(host: str, port: int, until: float) -> list[AddressInfo]:
    """Look up a host before `until` (monotonic); raise OSError, TimeoutError."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        return look_up(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return _before(until, look_up)


class OwnName:
    """The name of this machine for EHLO, looked up once."""

    def __init__(self, look_up: Callable[[], str] = socket.getfqdn) -> None:
        self._look_up = look_up
        #: None until it was looked up; empty if the machine has no full name.
        self._name: str | None = None

    def ehlo_name(self, own_address: str, until: float) -> str:
        """Return the full name, or an address literal (RFC 5321 section 4.1.3).

        The answer comes before `until` (monotonic).
        """
        name = self._name
        if name is None:
            name = self._full_name(min(until, time.monotonic() + _OWN_NAME_TIMEOUT))
            if time.monotonic() < until:  # else it was cut short: do not keep it
                self._name = name
        return name or _address_literal(own_address)

    def _full_name(self, until: float) -> str:
        try:
            name = _before(until, self._look_up)
        except OSError:
            return ""
        return name if _FQDN.fullmatch(name) else ""


own_name = OwnName()


def _address_literal(address: str) -> str:
    address = address.partition("%")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _before(until: float, look_up: Callable[[], _T]) -> _T:
    """Look up in a thread, which is abandoned if it takes too long."""
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
