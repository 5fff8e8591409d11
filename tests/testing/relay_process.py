"""`lettermint_relay`, in this process or in its own, and what it prints."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from django_lettermint.testing import command as relay_command
from tests.programs import ROOT, environment

MODULE = ("-m", "django_lettermint.testing")
#: An option that is given again wins.
ANY_PORTS = ("--port", "0", "--inbox-port", "0")
_WAITING = "Waiting for mail."


class Served:
    """A relay that `lettermint_relay` serves, known by what it has printed so far."""

    def __init__(self) -> None:
        self.output = ""

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
        """The address of its inbox; empty without one."""
        found = re.search(r"^Inbox: (http://\S+)$", self.output, re.MULTILINE)
        return found[1] if found else ""

    @property
    def ca_file(self) -> str:
        return str(self.settings["LETTERMINT_CA_FILE"])

    def port(self, security: str) -> int:
        assert self.settings["LETTERMINT_SECURITY"] == security
        return int(self.settings["LETTERMINT_PORT"])


def serve(
    *options: str,
    act: Callable[[Served], None] = lambda relay: None,
    until: str = _WAITING,
) -> Served:
    """Run the command in this thread: call `act` when it waits for mail.

    It is interrupted once it has printed `until`, and prints what has come by then.
    """
    served = Served()

    def write(text: str) -> None:
        served.output += f"{text}\n"
        if _WAITING in text:
            act(served)
        if until in text:
            signal.raise_signal(signal.SIGINT)

    parser = argparse.ArgumentParser()
    relay_command.add_arguments(parser)
    relay_command.serve(parser.parse_args([*ANY_PORTS, *options]), write)
    return served


class RelayProcess(Served):
    """A relay in its own process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__()
        self.process = process

    def read_until(self, text: str) -> str:
        """Read lines up to one that has the text; return what was read now."""
        assert self.process.stdout
        assert self.process.stderr
        read = ""
        while text not in read:
            line = self.process.stdout.readline()
            assert line, (text, self.output, self.process.stderr.read())
            read += line
            self.output += line
        return read

    def end(self, number: int = signal.SIGINT) -> None:
        """End it by a signal; it must not fail."""
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
            relay.read_until(_WAITING)
            yield relay
            if process.returncode is None:
                relay.end()
        finally:
            process.kill()
