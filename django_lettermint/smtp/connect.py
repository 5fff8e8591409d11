"""From a host name to a session that may send: DNS, TCP, TLS, EHLO, AUTH."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from django_lettermint.exceptions import TLSFailed

from . import dns as resolver
from .auth import authenticate
from .pipeline import Trace, untraced
from .session import Session
from .stream import Wire
from .talk import Steps, Talk

if TYPE_CHECKING:
    from django_lettermint.conf import RelayConfig


def connect(config: RelayConfig, *, until: float, trace: Trace = untraced) -> Session:
    """Open an authenticated session before `until` (monotonic).

    Raises ConnectFailed, TLSFailed (nothing was said in clear but EHLO and STARTTLS)
    and AuthenticationFailed (one login was tried).
    """
    talk = _reach(Steps(config, until, trace))
    try:
        features = _secure(talk)
        authenticate(talk, features)
        return Session(talk.wire, features, config, trace=trace)
    except BaseException:
        talk.wire.close()
        raise


def probe(config: RelayConfig, *, until: float, trace: Trace = untraced) -> None:
    """Do the same as `connect()` up to the login, and hang up."""
    talk = _reach(Steps(config, until, trace))
    try:
        _secure(talk)
    finally:
        talk.wire.close()


def _reach(steps: Steps) -> Talk:
    """Look the host up and connect."""
    config = steps.config
    addresses = steps.take(
        "DNS",
        lambda until: resolver.resolve(
            config.endpoint.host, config.endpoint.port, until
        ),
        "check the option `host` and this machine's DNS",
    )
    steps.trace("DNS", ", ".join(str(info[4][0]) for info in addresses))
    sock, address = steps.take(
        "TCP",
        lambda until: _first_to_answer(addresses, until),
        "is the port blocked? `manage.py test_lettermint --scan-ports` tries all",
    )
    # Not asked of the socket: the relay may have reset it already.
    steps.trace("TCP", "{}:{}".format(*address))
    return Talk(steps, Wire(sock))


def _secure(talk: Talk) -> dict[str, str]:
    """Greet and encrypt, in the order of `security`; return what the relay offers."""
    security = talk.steps.config.endpoint.security
    if security == "tls":
        _start_tls(talk)
    _hear_greeting(talk)
    features = _say_ehlo(talk)
    if security == "starttls":
        _upgrade(talk, features)
        features = _say_ehlo(talk)
    return features


def _hear_greeting(talk: Talk) -> None:
    reply = talk.reply("greeting")
    if reply.code != 220:
        talk.steps.refused("greeting", reply)


def _say_ehlo(talk: Talk) -> dict[str, str]:
    steps = talk.steps
    name = steps.config.endpoint.local_hostname or resolver.fqdn(steps.until)
    reply = talk.ask("EHLO", f"EHLO {name}")
    clear = steps.config.endpoint.security == "starttls" and not talk.wire.encrypted
    if reply.code >= 500 and clear:
        _no_starttls(talk, f"is not offered (EHLO was refused: {reply})")
    if not reply.positive:
        # HELO would do for mail, but offers neither STARTTLS nor AUTH.
        steps.refused("EHLO", reply)
    words = (line.split(None, 1) for line in reply.lines[1:] if line)
    features = {keyword.upper(): "".join(rest) for keyword, *rest in words}
    steps.trace("EHLO", " ".join(features))
    return features


def _upgrade(talk: Talk, features: dict[str, str]) -> None:
    """Go over to TLS by STARTTLS (RFC 3207)."""
    if "STARTTLS" not in features:
        _no_starttls(talk, "is not offered")
    reply = talk.ask("STARTTLS", "STARTTLS")
    if reply.code != 220:
        _no_starttls(talk, f"was refused ({reply})")
    if talk.wire.has_input():
        # Plaintext behind the reply would be read as if it came through TLS
        # (CVE-2011-0411).
        _no_starttls(talk, "was followed by plaintext")
    _start_tls(talk)


def _no_starttls(talk: Talk, what: str) -> NoReturn:
    error = TLSFailed(
        f"STARTTLS on {talk.steps.where} {what}. Nothing was sent; is somebody between "
        "this machine and the relay? Port 465 with security='tls' is safer"
    )
    error.step = "STARTTLS"
    raise error


def _start_tls(talk: Talk) -> None:
    steps, wire = talk.steps, talk.wire

    def shake_hands(until: float) -> ssl.SSLSocket:
        try:
            context = _tls_context(
                steps.config.endpoint.ca_file, _stamp(steps.config.endpoint.ca_file)
            )
        except OSError as error:
            raise TLSFailed(
                f"the option `ca_file` cannot be used: {error}. Nothing was sent"
            ) from None
        try:
            return wire.start_tls(context, steps.config.endpoint.host, until)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise ConnectionResetError("the server hung up") from None
        except ssl.SSLError as error:
            raise TLSFailed(
                f"TLS with {steps.where} failed: {_reason(error)}. Nothing was sent; "
                "check `host`, `port` and `security` (465 is implicit TLS, the other "
                "ports STARTTLS), and `ca_file` for a private relay"
            ) from None

    sock = steps.take("TLS", shake_hands, "check `port` and `security`")
    certificate = sock.getpeercert() or {}
    version, end = sock.version(), certificate["notAfter"]
    steps.trace("TLS", f"{version}, certificate valid until {end}")


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL ends some of these with a full stop, and our sentence goes on.
        return f"certificate not accepted: {error.verify_message.rstrip('.')}"
    return error.strerror or str(error)


@functools.lru_cache(maxsize=64)
def _tls_context(ca_file: str | None, _stamp: object) -> ssl.SSLContext:
    """Return the one context of a configuration: parsing CA bundles takes 30 ms."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _stamp(ca_file: str | None) -> object:
    """Return what changes when a CA file is replaced."""
    if not ca_file:
        return None
    stat = os.stat(ca_file)
    return stat.st_mtime_ns, stat.st_size


def _first_to_answer(
    addresses: Sequence[resolver.AddressInfo], until: float
) -> tuple[socket.socket, tuple[str, int]]:
    """Connect to one of a host's addresses; a dead one leaves time for the others."""
    failure = OSError("the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        share = (until - time.monotonic()) / (len(addresses) - number)
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine lacks
            failure = error
            continue
        try:
            # Commands are small and awaited: Nagle's algorithm would hold them back.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(0.001, share))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock, address[:2]
    raise failure
