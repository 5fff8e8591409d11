"""Which of the relay's ports can be used from this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from django_lettermint.conf import SECURITY_BY_PORT
from django_lettermint.exceptions import LettermintError
from django_lettermint.smtp import RelayState, probe

from .next_steps import Failed, brief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django_lettermint.conf import RelayConfig

#: Best first. 25 is for mail between servers, and most often blocked.
PREFERENCE = (465, 587, 2587, 2525, 2465, 25)
#: Seconds for all ports together.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What happened when a port was tried, without a login."""

    port: int
    security: str
    ok: bool
    seconds: float
    detail: str


def documented(config: RelayConfig) -> dict[int, str]:
    """Return the documented ports with their security, best first, and the one in use."""
    ports = {port: SECURITY_BY_PORT[port] for port in PREFERENCE}
    return ports | {config.endpoint.port: config.endpoint.security}


def scan(config: RelayConfig, ports: Mapping[int, str]) -> list[Port]:
    """Try all ports at once: TCP, verified TLS, greeting and EHLO, but no login."""
    until = time.monotonic() + min(PATIENCE, config.timeout)
    configs = [
        replace(
            config,
            endpoint=replace(config.endpoint, port=port, security=security),
        )
        for port, security in ports.items()
    ]
    with ThreadPoolExecutor(len(configs), "lettermint-scan") as threads:
        return list(threads.map(lambda each: _try(each, until), configs))


def require(configured: int, ports: Sequence[Port]) -> None:
    """Raise Failed, naming a port that works, if the configured one does not."""
    here = next(each for each in ports if each.port == configured)
    if here.ok:
        return
    usable = [each for each in ports if each.ok]
    if usable:
        best = usable[0]
        advice = (
            f"Set `port` to {best.port} (LETTERMINT_PORT) and, if you have set it, "
            f'`security` to "{best.security}".'
        )
    else:
        advice = (
            "Ask the administrator of this network to allow port 465 or 587; if every "
            "line above is about the name or the certificate, correct `host` or `ca_file`."
        )
    raise Failed(ConnectionError(f"port {configured}: {here.detail}"), "ports", advice)


def _try(config: RelayConfig, until: float) -> Port:
    started = time.monotonic()
    details: dict[str, str] = {}
    try:
        probe(
            config.endpoint,
            RelayState(),
            until=until,
            timeout=config.timeout,
            trace=details.__setitem__,
        )
    except LettermintError as error:
        # The next step is printed once, below the table.
        ok, detail = False, brief(error)
    else:
        ok, detail = True, details.get("TLS", "without TLS")
    return Port(
        port=config.endpoint.port,
        security=config.endpoint.security,
        ok=ok,
        seconds=round(time.monotonic() - started, 6),
        detail=detail,
    )
