"""Processes that a test starts, and ends by their own ids."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
POSTGRESQL = Path("/usr/lib/postgresql")


@contextmanager
def process(
    *command: str,
    env: Mapping[str, str],
    log: Path,
    stop: int = signal.SIGTERM,
    user: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in its own process group until the block ends."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            # Not to outlive a test run that is killed.
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
        )
    try:
        yield running
    finally:
        end(running, stop)


def end(running: subprocess.Popen[bytes], stop: int) -> None:
    """Ask a process to end, and kill what is left of its group."""
    if running.poll() is None:
        running.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            running.wait(10)
    with suppress(ProcessLookupError):  # it had no children, or they ended as well
        os.killpg(running.pid, signal.SIGKILL)
    running.wait(10)


def python(*arguments: str, env: Mapping[str, str]) -> None:
    """Run Python to its end; pytest shows what it printed."""
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **env}, check=True
    )


@contextmanager
def redis(folder: Path) -> Iterator[None]:
    """Run a Redis that listens on a socket in the folder, and nowhere else."""
    path = folder / "redis.sock"
    command = ("redis-server", "--port", "0", "--unixsocket", str(path), "--save", "")
    with process(
        *command, "--dir", str(folder), env={}, log=folder / "redis.log"
    ) as running:
        wait_for(path, running, folder / "redis.log")
        yield


@contextmanager
def postgresql(folder: Path) -> Iterator[None]:
    """Run a PostgreSQL that listens on a socket in the folder, and nowhere else."""
    [programs] = sorted(POSTGRESQL.glob("*/bin"))[-1:]
    data, log = folder / "data", folder / "postgresql.log"
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        user=user,
    )
    command = (str(programs / "postgres"), "-D", str(data), "-k", str(folder))
    with process(
        *command,
        *("-c", "listen_addresses=", "-c", "fsync=off"),
        env={},
        log=log,
        stop=signal.SIGINT,  # the fast shutdown, which does not wait for clients
        user=user,
    ) as running:
        wait_for(folder / ".s.PGSQL.5432", running, log)
        yield


def wait_for(path: Path, running: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers at its socket."""
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == 0:
                return
        with suppress(subprocess.TimeoutExpired):
            running.wait(0.05)
            break
    raise AssertionError(f"{path} does not answer: {log.read_text()}")


class Signals:
    """Collects the datagrams of `tests.workers.signals`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.changed = threading.Condition()
        self.received: list[bytes] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.path)
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Signals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self.path)
        self._thread.join(5)
        self._sock.close()

    def wait_for(self, count: int, timeout: float) -> bool:
        """Wait until so many signals have come; tell whether they have."""
        with self.changed:
            return self.changed.wait_for(lambda: len(self.received) >= count, timeout)

    def _listen(self) -> None:
        while received := self._sock.recv(65536):
            with self.changed:
                self.received.append(received)
                self.changed.notify_all()
