"""Subclasses of the backends: what is never called cannot be overridden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.core.mail import EmailMessage

from django_lettermint import tasks
from django_lettermint.backend import EmailBackend

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

BACKENDS = pytest.mark.parametrize(
    "kind", [EmailBackend, tasks.EmailBackend], ids=["sends", "queues"]
)
HOOKS = {
    "_send": "pre_send",
    "post_to_esp": "pre_send",
    "build_message_payload": "prepare()",
    "run_pre_send": "pre_send",
    "run_post_send": "message_sent",
    "parse_recipient_status": "message_sent",
    "raise_for_recipient_status": "message_failed",
    "prep_address": "prepare()",
    "connection_class": "security",
    "ssl_context": "ca_file",
}


@BACKENDS
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_never_called_is_refused(kind: type[Any], hook: str) -> None:
    with pytest.raises(TypeError) as raised:
        type("Staging", (kind,), {hook: lambda self, *args: None})

    text = str(raised.value)
    assert "Staging overrides" in text
    assert hook in text
    assert HOOKS[hook] in text


@BACKENDS
def test_a_hook_from_a_mixin_or_on_a_subclass_of_a_subclass_is_refused(
    kind: type[Any],
) -> None:
    filters = type("Filters", (), {"_send": lambda self, *args: None})
    inherits = type("Inherits", (filters,), {})
    between = type("Between", (kind,), {})

    for base in (kind, between):
        with pytest.raises(TypeError, match="_send"):
            type("Staging", (inherits, base), {})


def test_what_is_called_may_be_overridden(relay: Relay) -> None:
    class Staging(EmailBackend):
        def prepare(self, message: EmailMessage) -> Any:
            message.to = [each for each in message.to if each.endswith("@example.com")]
            return super().prepare(message)

        def send_messages(self, email_messages: Any) -> int:
            return super().send_messages(email_messages)

        def open(self) -> bool | None:
            return super().open()

        def close(self) -> None:
            super().close()

        def idna_encode(self, domain: str) -> str:
            return super().idna_encode(domain)

    class Queue(tasks.EmailBackend):
        def enqueue(self, form: dict[str, Any]) -> None:
            super().enqueue(form)

    message = EmailMessage(
        "Hi", "", "us@example.com", ["ann@example.com", "eve@example.org"]
    )
    assert Staging(**relay.options()).send_messages([message]) == 1
    assert [each.recipients for each in relay.messages] == [("ann@example.com",)]
    assert issubclass(Queue, tasks.EmailBackend)
