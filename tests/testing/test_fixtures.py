"""The package's names and its pytest plugin, with the extra `testing` and without."""

from __future__ import annotations

import subprocess
import sys

import pytest

import django_lettermint.testing
from tests.programs import ROOT, environment

WITHOUT_EXTRA = """
import runpy, sys
sys.modules["trustme"] = None
import django_lettermint.testing.fixtures
try:
    django_lettermint.testing.Relay
except ModuleNotFoundError as error:
    print(*error.__notes__)
runpy.run_module("django_lettermint.testing", run_name="__main__")
"""


def test_without_the_extra_the_relay_and_its_command_name_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_EXTRA],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    for printed in (done.stdout, done.stderr):
        assert "pip install 'django-lettermint-smtp[testing]'" in printed


def test_every_public_name_is_there_and_no_other() -> None:
    public = django_lettermint.testing
    assert all(getattr(public, name) for name in public.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Rely'"):
        _ = public.Rely
