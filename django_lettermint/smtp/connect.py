"""From a host name to a session that may send: DNS, TCP, TLS, EHLO, AUTH.

A host's addresses are tried in turn until one gives a session (RFC 5321 section 5.1):
a failure before the login is done concerns the address, not the mail. A refused login
and a certificate that cannot be verified end the attempt at once.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from django_lettermint.exceptions import (
    ConnectFailed,
    LettermintError,
    TLSFailed,
)
from django_lettermint.results import Phase

from . import dns
from .auth import authenticate
from .session import Session, Trace, untraced
from .stream import ClearTextReply, SMTPStream

if TYPE_CHECKING:
    from django_lettermint.conf import Endpoint

    from .relay_state import RelayState
    from .replies import Reply

_T = TypeVar("_T")

#: Returns the addresses of a host and port before a moment (monotonic).
Resolve = Callable[[str, int, float], list[dns.AddressInfo]]

#: The phase of a step; of all others it is CONNECT.
_PHASES = {"TLS": Phase.TLS, "STARTTLS": Phase.TLS, "AUTH": Phase.AUTH}


def connect(
    endpoint: Endpoint,
    relay: RelayState,
    *,
    until: float,
    timeout: float,
    trace: Trace = untraced,
    resolve: Resolve = dns.resolve,
) -> Session:
    """Open an authenticated session before `until` (monotonic).

    Each step takes at most `timeout` seconds. `resolve` looks the host up. Raises
    ConnectFailed if no address gives a session, TLSFailed (only EHLO and STARTTLS were
    sent in clear) and AuthenticationFailed (one login was tried).
    """

    def log_in(handshake: Handshake) -> Session:
        features = handshake.greet()
        authenticate(handshake, features)
        return Session(handshake.stream, features, relay, trace=trace)

    steps = Steps(endpoint, until, timeout, trace)
    return _at_first_address(steps, relay, resolve, log_in)


def probe(
    endpoint: Endpoint,
    relay: RelayState,
    *,
    until: float,
    timeout: float,
    trace: Trace = untraced,
) -> None:
    """Connect as `connect()` does but for the login, and close."""

    def greet(handshake: Handshake) -> None:
        handshake.greet()
        handshake.stream.close()

    steps = Steps(endpoint, until, timeout, trace)
    _at_first_address(steps, relay, dns.resolve, greet)


def _at_first_address(
    steps: Steps,
    relay: RelayState,
    resolve: Resolve,
    use: Callable[[Handshake], _T],
) -> _T:
    """Return the result of `use` at the first address where it succeeds."""
    endpoint = steps.endpoint
    found = steps.run(
        "DNS",
        lambda until: resolve(endpoint.host, endpoint.port, until),
        "check the option `host` and this machine's DNS",
    )
    steps.trace("DNS", ", ".join(str(info[4][0]) for info in found))
    # An address that does not answer leaves time for the others.
    share = steps.timeout / len(found)
    failures: list[ConnectFailed] = []
    for info in relay.in_order(found):
        try:
            with _connected(steps, info, share) as handshake:
                result = use(handshake)
        except ConnectFailed as error:
            relay.note_failure(info)
            failures.append(error)
            # A relay that refuses for good is asked once more, at another address.
            permanent = sum(each.smtp_code >= 500 for each in failures)
            if permanent == 2 or time.monotonic() >= steps.until:
                break
        else:
            relay.note_success(info)
            return result
    # A reply says more than a connection that was not made.
    raise max(failures, key=lambda failure: failure.smtp_code > 0)


@contextmanager
def _connected(
    steps: Steps, info: dns.AddressInfo, seconds: float
) -> Iterator[Handshake]:
    """Connect to an address; close the connection if anything breaks in the block."""
    sock = steps.run(
        "TCP",
        lambda until: _dial(info, min(until, time.monotonic() + seconds)),
        "is the relay running, and the port open? `manage.py test_lettermint "
        "--scan-ports` tries all ports",
    )
    stream = SMTPStream(sock)
    try:
        # Not from the socket, which has no peer once the relay has reset it.
        steps.trace("TCP", f"{info[4][0]}:{info[4][1]}")
        yield Handshake(steps, stream)
    except BaseException:  # interrupts, too, must leave no open socket
        stream.close()
        raise


def _dial(info: dns.AddressInfo, until: float) -> socket.socket:
    family, kind, protocol, _, address = info
    sock = socket.socket(family, kind, protocol)
    try:
        # Commands are small and awaited: Nagle's algorithm would hold them back.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(max(0.001, until - time.monotonic()))
        sock.connect(address)
    except BaseException:  # interrupts, too, must leave no open socket
        sock.close()
        raise
    return sock


class Steps:
    """The steps to a session; they end before `until` (monotonic) or fail."""

    def __init__(
        self, endpoint: Endpoint, until: float, timeout: float, trace: Trace
    ) -> None:
        self.endpoint = endpoint
        self.until = until
        self.timeout = timeout
        self.trace = trace

    @property
    def where(self) -> str:
        """Return the relay as errors name it."""
        return f"{self.endpoint.host}:{self.endpoint.port}"

    def run(self, step: str, act: Callable[[float], _T], advice: str) -> _T:
        """Act within the timeout; turn what breaks into ConnectFailed.

        Errors and interrupts leave without their traceback: its frames may hold
        credentials, which Django's debug page would show.
        """
        until = min(self.until, time.monotonic() + self.timeout)
        try:
            return act(until)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure = error.with_traceback(None)
        if isinstance(failure, LettermintError) or not isinstance(failure, OSError):
            raise failure
        failed = self.failed(step, _reason(failure), advice)
        failed.timed_out = isinstance(failure, TimeoutError)
        raise failed

    def failed(self, step: str, reason: str, advice: str) -> ConnectFailed:
        """Return the error of a step that broke."""
        return self._error(step, f"failed: {reason}", f"; {advice}")

    def refused(self, step: str, reply: Reply) -> ConnectFailed:
        """Return the error of a step that the relay refused."""
        error = self._error(step, f"was refused: {reply}")
        # The refusal of a whole site may end: a queue keeps the mail until then.
        error.with_reply(reply.code, reply.text).transient = True
        return error

    def no_tls(self, step: str, reason: str, advice: str) -> TLSFailed:
        """Return the error of a connection without verified TLS."""
        name = "TLS with" if step == "TLS" else f"{step} on"
        summary = f"{name} {self.where} {reason}"
        error = TLSFailed(f"{summary}. Nothing was sent; {advice}")
        error.step, error.summary = step, summary
        return error

    def _error(self, step: str, what: str, advice: str = "") -> ConnectFailed:
        summary = f"{step} on {self.where} {what}"
        error = ConnectFailed(f"{summary}. Nothing was sent{advice}")
        error.step, error.summary = step, summary
        error.phase = _PHASES.get(step, Phase.CONNECT)
        return error


class Handshake:
    """The commands on a new connection before the login, and their replies."""

    def __init__(self, steps: Steps, stream: SMTPStream) -> None:
        self.steps = steps
        self.endpoint = steps.endpoint
        self.stream = stream
        # Before the first reply: a relay may echo the token of an earlier connection.
        token, username = self.endpoint.token, self.endpoint.username
        stream.redact(token.encoded(f"\0{username}\0"), token.encoded(), token)

    def greet(self) -> dict[str, str]:
        """Greet and encrypt as `security` says; return the relay's features."""
        security = self.endpoint.security
        if security == "tls":
            self._start_tls()
        reply = self.read_reply("greeting")
        if reply.code != 220:
            raise self.steps.refused("greeting", reply)
        features = self._ehlo()
        if security == "starttls":
            self._upgrade(features)
            features = self._ehlo()
        return features

    def command(self, step: str, line: str | Callable[[], str]) -> Reply:
        """Send a line, which a function makes if it is secret, and return the reply."""

        def write(until: float) -> None:
            text = line() if callable(line) else line
            self.stream.write(text.encode("ascii") + b"\r\n", until)

        self.steps.run(step, write, "try again later")
        return self.read_reply(step)

    def read_reply(self, step: str) -> Reply:
        """Return the next reply."""
        advice = "are `host` and `port` an SMTP relay's?"
        if step == "greeting":
            advice += " If it greets late on purpose, raise the option `timeout`"
        return self.steps.run(step, self.stream.read_reply, advice)

    def _ehlo(self) -> dict[str, str]:
        steps, stream = self.steps, self.stream
        name = self.endpoint.local_hostname or dns.own_name.ehlo_name(
            stream.local_address, steps.until
        )
        reply = self.command("EHLO", f"EHLO {name}")
        clear = self.endpoint.security == "starttls" and not stream.encrypted
        if reply.code in (500, 502) and clear:  # it knows no extensions
            self._no_starttls(f"is not offered (EHLO was refused: {reply})")
        if not reply.positive:
            # HELO would do for mail, but offers neither STARTTLS nor AUTH.
            raise steps.refused("EHLO", reply)
        features = _features(reply)
        steps.trace("EHLO", " ".join(features))
        return features

    def _upgrade(self, features: Mapping[str, str]) -> None:
        """Change to TLS by STARTTLS (RFC 3207)."""
        if "STARTTLS" not in features:
            self._no_starttls("is not offered")
        reply = self.command("STARTTLS", "STARTTLS")
        if 400 <= reply.code < 500:
            raise self.steps.refused("STARTTLS", reply)
        if reply.code != 220:
            self._no_starttls(f"was refused ({reply})")
        if self.stream.has_input():
            # Plaintext behind the reply would be read as if it came through TLS
            # (CVE-2011-0411). Only a refusal counts.
            reply = self.read_reply("STARTTLS")
            if reply.negative:
                raise self.steps.refused("STARTTLS", reply)
            self._no_starttls("was followed by plaintext")
        self._start_tls()

    def _no_starttls(self, what: str) -> NoReturn:
        raise self.steps.no_tls(
            "STARTTLS",
            what,
            "does a proxy intercept the connection? Port 465 with "
            "security='tls' is safer",
        )

    def _start_tls(self) -> None:
        self.steps.run("TLS", self._shake_hands, "check `port` and `security`")
        tls = self.stream.tls
        certificate = (tls and tls.getpeercert()) or {}
        version = tls and tls.version()
        end = certificate.get("notAfter")
        self.steps.trace("TLS", f"{version}, certificate valid until {end}")

    def _shake_hands(self, until: float) -> None:
        steps, ca_file = self.steps, self.endpoint.ca_file
        try:
            context = _tls_context(ca_file, _stamps(ca_file))
        except OSError as error:
            reason = f"failed: the option `ca_file` cannot be used: {error}"
            raise steps.no_tls("TLS", reason, "correct `ca_file`") from None
        try:
            self.stream.start_tls(context, self.endpoint.host, until)
        except ClearTextReply as error:
            if error.reply.negative:
                step = (
                    "STARTTLS" if self.endpoint.security == "starttls" else "greeting"
                )
                raise steps.refused(step, error.reply) from None
            raise steps.no_tls(
                "TLS",
                "failed: the relay does not speak TLS here",
                "check `port` and `security` (465 is implicit TLS, the other ports "
                "STARTTLS)",
            ) from None
        except ssl.SSLCertVerificationError as error:
            # OpenSSL ends some of these messages with a full stop.
            reason = error.verify_message.rstrip(".")
            failed = steps.no_tls(
                "TLS",
                f"failed: certificate not accepted: {reason}",
                "check `host`, and `ca_file` for a private relay",
            )
            failed.verify_code = error.verify_code
            raise failed from None


def _features(reply: Reply) -> dict[str, str]:
    """Return the EHLO keywords with their parameters.

    Several AUTH lines are one list, and AUTH=PLAIN is an old form of AUTH PLAIN.
    """
    features: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, *rest = line.split(None, 1) or [""]
        if keyword.upper().startswith("AUTH="):
            keyword, rest = "AUTH", [keyword[5:], *rest]
        keyword = keyword.upper()
        if keyword == "AUTH":
            rest = [features.get("AUTH", ""), *rest]
        if keyword:
            features[keyword] = " ".join(rest).strip()
    return features


@functools.lru_cache(maxsize=64)
def _tls_context(ca_file: str | None, _stamps: object) -> ssl.SSLContext:
    """Return a context that all connections share: parsing CA bundles takes 30 ms."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _stamps(ca_file: str | None) -> tuple[object, ...]:
    """Return what changes when a CA file, or the system's bundle, is replaced."""
    system = ssl.get_default_verify_paths()
    found: list[object] = []
    for path in (ca_file, system.cafile, system.capath):
        if path:
            stat = os.stat(path)
            found.append((path, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(found)


def _reason(failure: OSError) -> str:
    if isinstance(failure, TimeoutError):
        return "timed out"
    return failure.strerror or str(failure) or type(failure).__name__
