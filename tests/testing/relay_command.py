"""`lettermint_relay` in this process, and what it prints."""

from __future__ import annotations

import argparse
import re
import signal
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from django_lettermint.testing import command as relay_command

#: An option that is given again wins.
ANY_PORTS = ("--port", "0", "--inbox-port", "0")
WAITING = "Waiting for mail."


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
    until: str = WAITING,
    number: int = signal.SIGINT,
) -> Served:
    """Run the command in this thread: call `act` when it waits for mail.

    A signal ends it once it has printed `until`, and it prints what has come by then.
    """
    served = Served()

    def write(text: str) -> None:
        served.output += f"{text}\n"
        if WAITING in text:
            act(served)
        if until in text:
            signal.raise_signal(number)

    parser = argparse.ArgumentParser()
    relay_command.add_arguments(parser)
    relay_command.serve(parser.parse_args([*ANY_PORTS, *options]), write)
    return served
