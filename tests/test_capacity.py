"""What docs/capacity.md says comes from a simulation, which is held to a measured point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "capacity.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists(), reason="the sdist has no benchmarks"
)


def capacity(*arguments: str) -> str:
    """Run the simulation, and return what it printed."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_documented_table_is_what_the_simulation_prints() -> None:
    text = (ROOT / "docs" / "capacity.md").read_text("utf-8")

    assert capacity() in text


@pytest.mark.slow
def test_the_simulation_agrees_with_real_mail_through_a_slow_server() -> None:
    assert "measured" in capacity("--check")
