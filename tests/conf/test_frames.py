"""What debug pages show of a configuration that is refused: no token, lazy or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr

from django_lettermint.backend import EmailBackend
from django_lettermint.conf import queue_config, webhook_config
from django_lettermint.webhooks import LettermintTrackingWebhookView as WebhookView
from tests.exposure import strings_of

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "sesame-1f0a"


def forms(value: str) -> list[object]:
    lazy_object = SimpleLazyObject(lambda: value)
    seen = SimpleLazyObject(lambda: value)
    str(seen)
    return [value, lazy_object, seen, lazystr(value), lazy(lambda: value, str)()]


def check(make: Callable[..., object], *arguments: object, **keywords: Any) -> None:
    """Call what raises a configuration error, and search all that this shows."""
    with pytest.raises(ImproperlyConfigured) as raised:
        make(*arguments, **keywords)
    assert [text for text in strings_of(raised.value) if SECRET in text] == []


BROKEN: dict[str, dict[str, Any]] = {
    "another option": {"port": 0},
    "a lazy option": {"port": SimpleLazyObject(lambda: 1 // 0)},
    "an option of Anymail": {"idna_encoder": "nope"},
    "an unknown option": {"prot": 465},
    "the pool": {"pool": {"max_size": 0}},
    "another secret": {"signing_secret": ["whsec 1"]},
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("number", range(5))
def test_a_token_is_in_no_frame_when_something_else_is_wrong(
    broken: str, number: int
) -> None:
    token, wrong = forms(SECRET)[number], BROKEN[broken]
    for name in ("api_token", "password"):
        check(EmailBackend, **{name: token}, **wrong)
        check(EmailBackend, **wrong, **{name: token})
    options = {"api_token": token, **wrong}
    check(EmailBackend, alias="news", **options)
    for settings in (
        {"LETTERMINT_API_TOKEN": token},
        {"ANYMAIL_LETTERMINT_API_TOKEN": token},
        {"ANYMAIL": {"LETTERMINT_API_TOKEN": token, "MAILGUN_API_KEY": SECRET}},
        {"LETTERMINT_API_TOKEN": "lm_1", "LETTERMINT_SIGNING_SECRET": token},
        {"MAILERS": {"news": {"OPTIONS": options}}, "LETTERMINT_API_TOKEN": token},
    ):
        with override_settings(**settings):
            check(EmailBackend, **wrong)


@pytest.mark.parametrize("name", ["api_token", "password", "signing_secret"])
def test_a_refused_secret_is_in_no_frame(name: str) -> None:
    for form in forms(f"{SECRET} with spaces"):
        check(EmailBackend, **{"api_token": "lm_1", name: form})
        with override_settings(
            LETTERMINT_API_TOKEN=form, LETTERMINT_SIGNING_SECRET=form
        ):
            check(EmailBackend)
            check(webhook_config)
    check(EmailBackend, **{"api_token": "lm_1", name: [[SECRET]]})
    check(EmailBackend, **{"api_token": "lm_1", name: SECRET.encode()})


@pytest.mark.parametrize("name", ["api_key", "token", "api_tokn", "use_tls", "colour"])
def test_a_token_under_a_wrong_name_is_in_no_frame(name: str) -> None:
    for form in forms(SECRET):
        check(EmailBackend, **{name: form})
        check(EmailBackend, api_token="lm_1", **{name: form})
        check(queue_config, {name: form})
    with override_settings(ANYMAIL={f"LETTERMINT_{name.upper()}": SECRET}):
        check(EmailBackend, api_token="lm_1")


def test_one_refused_secret_shows_no_other() -> None:
    check(EmailBackend, api_token="to ken", signing_secret=SECRET)
    check(EmailBackend, api_token=SECRET, signing_secret="whsec 1")
    check(EmailBackend, api_token=SECRET, password="pass word")


def test_a_token_that_cannot_be_read_is_in_no_frame() -> None:
    def fails_for_now() -> str:
        answers.append("")
        if len(answers) <= 2:  # also when it is asked once more
            raise OSError("the vault is sealed")
        return SECRET

    for make in (lazy(fails_for_now, str), lambda: SimpleLazyObject(fails_for_now)):
        answers: list[str] = []
        check(EmailBackend, api_token=make())
        answers = []
        check(EmailBackend, api_token=SECRET, signing_secret=[make()])


@pytest.mark.parametrize("broken", [{"ANYMAIL": 7}, {"ANYMAIL": "nope"}])
def test_a_keyword_is_in_no_frame_when_the_settings_cannot_be_read(
    broken: dict[str, object],
) -> None:
    for token in forms(SECRET):
        with override_settings(**broken):
            check(EmailBackend, api_token=token)
            check(EmailBackend, password=token)
            check(queue_config, {"token": token})
            check(webhook_config, {"signing_secret": token})
            check(WebhookView.as_view, signing_secret=token)
