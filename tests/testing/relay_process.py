"""`lettermint_relay` in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.programs import ROOT, environment

MODULE = ("-m", "django_lettermint.testing")
#: Ports of its own; an option that is given again wins.
ANY_PORTS = ("--port", "0", "--inbox-port", "0")


class RelayProcess:
    """A relay that runs; `output` has what was read from it so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""

    def read_until(self, text: str) -> str:
        """Read lines up to one that has the text; return what was read now."""
        assert self.process.stdout
        read = ""
        while text not in read:
            line = self.process.stdout.readline()
            assert line, f"{text!r} is not in {self.output}{self._errors()}"
            read += line
            self.output += line
        return read

    def _errors(self) -> str:
        assert self.process.stderr
        return self.process.stderr.read()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it printed."""
        lines = self.output.partition(":\n\n")[2].partition("\n\n")[0]
        environ: defaultdict[str, str] = defaultdict(str)
        names: dict[str, Any] = {"os": SimpleNamespace(environ=environ)}
        exec(lines.removeprefix("import os\n"), names)
        return {name: value for name, value in names.items() if name.isupper()}

    @property
    def inbox(self) -> str:
        """The address of its inbox."""
        found = re.search(r"^Inbox: (http://\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def end(self, number: int = signal.SIGINT) -> None:
        """End it by a signal; it must leave in good order."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=30)
        self.output += output
        assert (self.process.returncode, errors) == (0, "")


@contextmanager
def relay_process(
    *options: str,
    command: tuple[str, ...] = MODULE,
    folder: Path = ROOT,
    variables: Mapping[str, str] | None = None,
) -> Iterator[RelayProcess]:
    """Start a relay on free ports; give it when it waits for mail, and end it."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", *command, *ANY_PORTS, *options],
        cwd=folder,
        env=environment(**(variables or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        relay = RelayProcess(process)
        try:
            relay.read_until("Waiting for mail.")
            yield relay
            if process.returncode is None:
                relay.end()
        finally:
            process.kill()


def failure(
    *options: str,
    command: tuple[str, ...] = MODULE,
    variables: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Start a relay that cannot run; return its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command, *ANY_PORTS, *options],
        cwd=ROOT,
        env=environment(**(variables or {})),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert not done.stdout, "settings of a relay that does not run"
    return done.returncode, done.stderr
