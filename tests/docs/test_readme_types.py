"""The quick start's snippets as a project's own code: type-checked, and with Django's locmem."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core import mail
from django.test import override_settings

from django_lettermint.message import LettermintMessage
from tests.snippets import DOCS, ROOT, receivers_forgotten, snippet

QUICK_START = DOCS / "quickstart.md"
#: What is shown to run, in the order of the page.
SHOWN = ("message.send()", "message_failed", "(tracking)")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_snippets_type_check_under_mypy_strict(tmp_path: Path) -> None:
    # Only the environment that checks types has it.
    api = pytest.importorskip("mypy.api")
    code = "\n".join(snippet(QUICK_START, text).code for text in SHOWN)
    # A receiver's arguments are the reader's to annotate.
    code = code.replace("def on_failure(message, result, error, **kwargs):", ON_FAILURE)
    code = code.replace("def on_tracking(event, **kwargs):", ON_TRACKING)
    project, config = tmp_path / "project.py", tmp_path / "mypy.ini"
    project.write_text(f"{IMPORTS}\n{code}", "utf-8")
    config.write_text(CONFIG, "utf-8")

    options = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    out, err, status = api.run([*options, str(project)])

    assert (status, err) == (0, ""), out


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
ON_FAILURE = """def on_failure(
    message: EmailMessage, result: SendResult, error: Exception, **kwargs: Any
) -> None:"""
ON_TRACKING = "def on_tracking(event: AnymailTrackingEvent, **kwargs: Any) -> None:"


@override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend")
def test_the_snippets_run_with_locmem() -> None:
    mail.outbox = []
    with receivers_forgotten():
        shown = [snippet(QUICK_START, text).run({}) for text in SHOWN]

    [kept] = mail.outbox
    assert isinstance(kept, LettermintMessage)
    assert kept.tag == "order shipped"
    assert kept.metadata == {"order_id": 4711}
    assert shown[0]["result"] is None
