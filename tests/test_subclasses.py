"""The backends as Anymail's, and as base classes of a project's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from anymail.backends.base import AnymailBaseBackend
from anymail.exceptions import AnymailInvalidAddress
from django.core.mail import EmailMessage
from django.test import override_settings

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
    class Filter:
        def prepare(self, message: EmailMessage) -> Any:
            message.to = [each for each in message.to if each.endswith("@example.com")]
            return super().prepare(message)  # type: ignore[misc] # of the backend

    class Staging(Filter, EmailBackend):
        def send_messages(self, email_messages: Any) -> int:
            return super().send_messages(email_messages)

    class Queue(Filter, tasks.EmailBackend):
        def enqueue(self, form: dict[str, Any]) -> None:
            super().enqueue(form)

    with override_settings(**relay.settings()):
        for kind in (Staging, Queue):
            message = EmailMessage(
                "Hi", "", "us@example.com", ["ann@example.com", "eve@example.org"]
            )
            assert kind().send_messages([message]) == 1
    assert [each.recipients for each in relay.messages] == [("ann@example.com",)] * 2


# -- Anymail's base class, without its constructor -------------------------------------

TOKEN = "lm_test_token"


class Plain(AnymailBaseBackend):
    """Nothing but Anymail's constructor."""

    esp_name = "Lettermint"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "SEND_DEFAULTS": {"tag": "site", "esp_extra": {}},
            "LETTERMINT_SEND_DEFAULTS": {"route": "ours"},
            "IGNORE_UNSUPPORTED_FEATURES": True,
            "IGNORE_RECIPIENT_STATUS": True,
            "DEBUG_API_REQUESTS": True,
        },
    ],
)
def test_every_public_attribute_is_what_anymails_constructor_makes_it(
    settings: dict[str, Any],
) -> None:
    with override_settings(ANYMAIL=settings):
        expected, ours = vars(Plain()), vars(EmailBackend(api_token=TOKEN))

    public = {name for name in expected if not name.startswith("_")}
    encoder = public & {"idna_encoder"}
    assert public <= ours.keys()
    assert {name: ours[name] for name in public - encoder} == {
        name: expected[name] for name in public - encoder
    }


@pytest.mark.parametrize("encoder", ["idna2008", "idna2003", "none"])
@pytest.mark.parametrize("domain", ["example.com", "straße.example", "bücher.example"])
def test_domains_are_encoded_as_anymail_encodes_them(encoder: str, domain: str) -> None:
    with override_settings(ANYMAIL={"IDNA_ENCODER": encoder}):
        expected = Plain().idna_encode(domain)
        assert EmailBackend(api_token=TOKEN).idna_encode(domain) == expected


def test_a_domain_that_cannot_be_encoded_is_an_invalid_address() -> None:
    with pytest.raises(AnymailInvalidAddress, match="☃"):
        EmailBackend(api_token=TOKEN).idna_encode("☃.example")


def test_send_defaults_of_one_backend_are_its_own() -> None:
    with override_settings(LETTERMINT_API_TOKEN=TOKEN):
        EmailBackend().send_defaults["tag"] = "changed"
        assert EmailBackend().send_defaults == {}
