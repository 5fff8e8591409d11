"""What the backend takes over from Anymail's base class without its constructor."""

from __future__ import annotations

from typing import Any

import pytest
from anymail.backends.base import AnymailBaseBackend
from anymail.exceptions import AnymailInvalidAddress
from django.test import override_settings

from django_lettermint.backend import EmailBackend

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
