"""What one mail over a warm connection asks of the operating system, by `strace`."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from django_lettermint.testing import Relay
from tests.programs import PRELUDE, ROOT, environment

pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(sys.platform != "linux", reason="strace is for Linux"),
]

#: os.stat() divides the mails from each other.
PROGRAM = """
def mark():
    os.path.exists("/between two mails")

send("first@example.org")
for number in range(20):
    mark()
    send(f"{number}@example.org")
mark()
"""


def calls_of_each_mail(trace: Path) -> list[list[str]]:
    """Return the names of the system calls of each mail, in order."""
    lines = trace.read_text("utf-8", "replace").splitlines()
    marks = [number for number, line in enumerate(lines) if "/between two" in line]
    return [
        re.findall(r"^\d+ +(\w+)\(", "\n".join(lines[begin + 1 : end]), re.MULTILINE)
        for begin, end in itertools.pairwise(marks)
    ]


def test_a_warm_mail_takes_few_system_calls_and_none_in_vain(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    assert strace, "strace is missing: apt-get install strace"
    trace = tmp_path / "trace"
    with Relay() as relay:
        subprocess.run(
            [strace, "-f", "-o", trace, sys.executable, "-c", PRELUDE + PROGRAM],
            env=environment(OPTIONS=json.dumps(relay.options())),
            cwd=ROOT,
            check=True,
            timeout=50,
        )

    # Where the machine is busy, a reply may come in two pieces: not each time.
    least = min(calls_of_each_mail(trace), key=len)
    on_the_connection = [
        name for name in least if name in ("recvfrom", "sendto", "poll")
    ]
    assert on_the_connection == [
        "recvfrom",  # is the connection still open?
        *("sendto", "poll", "recvfrom"),  # MAIL, RCPT and DATA
        *("sendto", "recvfrom"),  # the content; has the relay refused it meanwhile?
        *("sendto", "poll", "recvfrom"),  # the end of the message
    ]
    assert len(least) <= 12
