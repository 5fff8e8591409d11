"""The quick start's snippets type-check as a project's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.snippets import DOCS, ROOT, snippet

#: Snippets of the quick start, in the order of the page.
SHOWN = ("message.send()", "message_failed", "(tracking)")
CONFIG = f"""
[mypy]
strict = true
mypy_path = {ROOT}
plugins = mypy_django_plugin.main

[mypy.plugins.django-stubs]
django_settings_module = tests.settings

[mypy-anymail.*]
follow_untyped_imports = true

# As for an installed package: only the project's own errors are shown.
[mypy-django_lettermint.*]
follow_imports = silent
"""
IMPORTS = """
from typing import Any
from anymail.signals import AnymailTrackingEvent
from django.core.mail import EmailMessage
from django_lettermint.results import SendResult
"""
#: The arguments of receivers, which the page shows without types.
ANNOTATED = {
    "(message, result, error, **kwargs)": "(message: EmailMessage, "
    "result: SendResult, error: Exception, **kwargs: Any) -> None",
    "(event, **kwargs)": "(event: AnymailTrackingEvent, **kwargs: Any) -> None",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_snippets_type_check_under_mypy_strict(tmp_path: Path) -> None:
    # Only the environment that checks types has it.
    api = pytest.importorskip("mypy.api")
    code = "\n".join(snippet(DOCS / "quickstart.md", text).code for text in SHOWN)
    for shown, annotated in ANNOTATED.items():
        assert shown in code
        code = code.replace(shown, annotated)
    project, config = tmp_path / "project.py", tmp_path / "mypy.ini"
    project.write_text(f"{IMPORTS}\n{code}", "utf-8")
    config.write_text(CONFIG, "utf-8")

    options = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    out, err, status = api.run([*options, str(project)])

    assert (status, err) == (0, ""), out
