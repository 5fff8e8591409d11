"""A third-party mail server, run on loopback in a temporary folder.

with Haraka() as server:
    backend = EmailBackend(**server.options("starttls"))
    ...
    assert server.taken() == {"bob@example.org": 1}

All servers accept mail after a login, keep it, and relay nothing. They refuse recipients
`nobody…@` permanently and `later…@` temporarily, and the sender `banned@`.
"""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import trustme

ROOT = Path(__file__).parents[2]
#: Where `.ci/zoo` puts the servers that cannot be installed beside Postfix.
ZOO = ROOT / ".zoo"

USER = "lettermint"
TOKEN = "lm_zoo-token"
#: The servers' name.
HOST_NAME = "mx.zoo.test"

#: Below the ephemeral ports, which other programs get at random. No server can choose a
#: port itself: one that finds a port in use exits, and is started with others.
PORTS = range(20000, 30000)


class Server(ABC):
    """Run a server during the block, and remove everything afterwards."""

    #: Names of its ports. "tls" is implicit TLS; all others are STARTTLS.
    services: ClassVar[Sequence[str]] = ("tls", "starttls")
    #: Pattern in its output or log once it listens on all ports.
    ready: ClassVar[str]
    #: Patterns that it logs for each connection, and for each mail that it accepts.
    connected: ClassVar[str]
    accepted: ClassVar[str]

    def __init__(
        self, *, max_connections: int | None = None, max_mails: int | None = None
    ) -> None:
        """Limit concurrent connections, or mails on each connection."""
        self.max_connections = max_connections
        self.max_mails = max_mails
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        assert os.geteuid() == 0, (
            "the servers start as root only: run the tests as root"
        )
        self.root = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        # The users of the servers need access, too.
        self.root.chmod(0o755)
        try:
            authority().cert_pem.write_to_path(self.root / "ca.pem")
            self.set_up()
            self.start()
        except BaseException:  # also a failure of pytest: leave no folder behind
            shutil.rmtree(self.root)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.root)

    def options(self, service: str = "tls", **others: object) -> dict[str, object]:
        """Return the backend options that reach this server, and the others given."""
        return {
            "api_token": TOKEN,
            "host": "127.0.0.1",
            "port": self.ports[service],
            "security": "tls" if service == "tls" else "starttls",
            "ca_file": str(self.root / "ca.pem"),
            # The server ignores keys, so a repeat would be a duplicate.
            "idempotency": False,
            **others,
        }

    def start(self) -> None:
        """Start, on the same ports as before if it ran before."""
        for _ in range(20):
            numbers = random.sample(PORTS, len(self.services))
            ports = self.ports or dict(zip(self.services, numbers, strict=True))
            if self._listens_on(ports):
                self.ports = ports
                return
        raise AssertionError(f"the server does not start:\n{self._last_lines()}")

    def stop(self) -> None:
        """End all its processes as systemd does; accepted mail remains."""
        process, self._process = self._process, None
        if not process:
            return
        _signal(process.pid, signal.SIGTERM)
        # Exim handles SIGTERM unsafely: a process in malloc() may hang.
        _wait_until(lambda: not _alive(process.pid), timeout=1)
        _signal(process.pid, signal.SIGKILL)
        process.wait(10)
        assert _wait_until(lambda: not _alive(process.pid), timeout=10)

    def taken(self) -> Counter[str]:
        """Count accepted mails by recipient."""
        return Counter(self.recipients())

    def wait_for(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until a condition holds."""
        assert _wait_until(condition, timeout), self._last_lines()

    def logged(self, pattern: str) -> int:
        """Count the matches in the log."""
        return len(re.findall(pattern, self.log(), re.MULTILINE))

    def log(self) -> str:
        """Return the output and the log of the server."""
        # Files, unlike pipes, can be read as soon as a reply has arrived.
        return "\n".join(
            file.read_text(errors="replace") for file in self.logs() if file.exists()
        )

    def logs(self) -> Sequence[Path]:
        """Return the file of its output, and its log files."""
        return (self.root / "output",)

    def forget(self) -> None:
        """Forget accepted mail and the log."""
        for file in self.logs():
            if file.exists():
                os.truncate(file, 0)

    @abstractmethod
    def set_up(self) -> None:
        """Write the files that do not depend on the ports."""

    @abstractmethod
    def command(self, ports: dict[str, int]) -> Sequence[str | Path]:
        """Write the files that depend on the ports, and return the command."""

    @abstractmethod
    def recipients(self) -> list[str]:
        """Return the recipients of each accepted mail."""

    def write(self, name: str, text: str) -> Path:
        """Write a file in the server's folder."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def write_certificate(self, key: str, chain: str) -> None:
        """Write key and certificates into files of these names."""
        issued = authority().issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
        issued.private_key_pem.write_to_path(self.root / key)
        for each in issued.cert_chain_pems:
            each.write_to_path(self.root / chain, append=True)

    def _listens_on(self, ports: dict[str, int]) -> bool:
        command = self.command(ports)
        before = self.logged(self.ready)
        with (self.root / "output").open("ab") as output:
            # A new session, and so a process group for the server and its children.
            self._process = process = subprocess.Popen(
                command,
                cwd=self.root,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def settled() -> bool:
            return self.logged(self.ready) > before or process.poll() is not None

        try:
            self.wait_for(settled)
        except BaseException:  # also a failure of pytest: leave no process behind
            self.stop()
            raise
        if process.poll() is None:
            return True
        self.stop()
        return False

    def environment(self) -> dict[str, str]:
        """Return additional environment variables."""
        return {}

    def _last_lines(self) -> str:
        return "\n".join(self.log().splitlines()[-20:])


@functools.cache
def authority() -> trustme.CA:
    """Return the CA of all servers' certificates."""
    return trustme.CA(key_type=trustme.KeyType.RSA)


def require(*programs: str | Path) -> None:
    """Fail if a program is missing."""
    for program in programs:
        assert shutil.which(program) or Path(program).is_file(), (
            f"{program} is missing: apt-get install $(cat .ci/debian-packages.txt), "
            "then run .ci/zoo"
        )


def _wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    # Polled, since the server is another program.
    until = time.monotonic() + timeout
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return held


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _alive(group: int) -> bool:
    """Return whether a process of the group still runs."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the program's name, which may contain parentheses.
            state, _, found = file.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False
