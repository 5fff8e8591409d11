"""The package's names and its pytest plugin, with the extra `testing` and without."""

from __future__ import annotations

import subprocess
import sys

import pytest

import django_lettermint.testing
from tests.programs import ROOT, environment

WITHOUT_EXTRA = """
import sys
sys.modules["trustme"] = None
import django_lettermint.testing.fixtures
try:
    django_lettermint.testing.Relay
except ModuleNotFoundError as error:
    print(*error.__notes__)
"""


def test_without_the_extra_the_plugin_loads_and_the_relay_names_what_is_missing() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_EXTRA],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert "pip install 'django-lettermint-smtp[testing]'" in done.stdout


def test_every_public_name_is_there_and_no_other() -> None:
    public = django_lettermint.testing
    assert all(getattr(public, name) for name in public.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Rely'"):
        _ = public.Rely
