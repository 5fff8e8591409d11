"""Programs that send mail in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

#: What each program begins with.
PRELUDE = """
import json, os, sys, threading
import django
django.setup()
from django.core.mail import EmailMessage
from django_lettermint import pool
from django_lettermint.backend import EmailBackend

sender = EmailBackend(**json.loads(os.environ["OPTIONS"]))

def send(to):
    message = EmailMessage("Hello", "How are you?", "ann@example.org", [to])
    assert sender.send_messages([message]) == 1

def say(word):
    print(word, flush=True)
"""


def environment(**others: str) -> dict[str, str]:
    """Return the environment of a process that finds the package and its settings."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        **others,
    }


@contextmanager
def program(
    text: str, options: Mapping[str, Any], *, before: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Run a program that knows how to `send()` and `say()`; its input is a pipe."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", before + PRELUDE + text],
        env=environment(OPTIONS=json.dumps(options)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def output(text: str, options: Mapping[str, Any], *, before: str = "") -> list[str]:
    """Run a program to its end and return the lines it printed."""
    with program(text, options, before=before) as process:
        out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert err == "", err
    return out.splitlines()
