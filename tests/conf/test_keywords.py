"""Keywords as callers pass them: truth values, None for "not given", lazy values."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import django
import pytest
from anymail.exceptions import AnymailConfigurationError
from django.core import mail
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr

from django_lettermint.backend import EmailBackend
from django_lettermint.conf import (
    OPTIONS,
    QUEUE_OPTIONS,
    backend_config,
    queue_config,
    webhook_config,
)

from .reading import TOKEN, as_settings, config, relay

if TYPE_CHECKING:
    from collections.abc import Callable

BACKEND = "django_lettermint.backend.EmailBackend"

#: Of each option, a value that is not the default.
VALUES: dict[str, Any] = {
    "host": "relay.example",
    "port": 587,
    "security": "starttls",
    "username": "shop",
    "auth_mechanism": "LOGIN",
    "local_hostname": "shop.example",
    "timeout": 3,
    "final_reply_timeout": 4,
    "deadline": 5,
    "retries": 1,
    "pool": {"max_size": 2},
    "pipelining": False,
    "chunking": True,
    "batch_connections": 2,
    "idempotency": True,
    "correlation_key": "id",
    "send_defaults": {"tag": "a"},
    "tenants": {"acme": {}}.__getitem__,
    "tenant": "acme",
    "fail_silently": True,
    "ignore_unsupported_features": True,
    "ignore_recipient_status": True,
    "debug_api_requests": True,
    "idna_encoder": "none",
}
QUEUE_VALUES: dict[str, Any] = {
    "using": "relay",
    "task_backend": "other",
    "queue_name": "mail",
    "priority": 3,
    "max_bytes": 1000,
    "give_up_after": 60,
    "on_commit": True,
    "fail_silently": True,
}


def test_every_option_has_a_value_in_these_tests() -> None:
    unlike = {"api_token", "ca_file", "signing_secret", "webhook_dedupe"}

    assert OPTIONS.keys() - unlike <= VALUES.keys()
    assert QUEUE_OPTIONS.keys() <= QUEUE_VALUES.keys()


def merged(options: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    """Return what a backend gets from `get_connection(**keywords)` on Django 6.1."""
    ignored = {"_ignore_unknown_kwargs": {*keywords}} if keywords else {}
    return {"alias": "default", **options, **keywords, **ignored}


# -- fail_silently -----------------------------------------------------------------------


@pytest.mark.parametrize("read", [backend_config, queue_config])
@pytest.mark.parametrize("configured", [True, False])
def test_fail_silently_is_any_truth_value_and_a_false_one_is_not_given(
    read: Callable[[dict[str, Any]], Any], *, configured: bool
) -> None:
    settings = {"api_token": TOKEN, "fail_silently": configured}
    with override_settings(**as_settings(settings)):
        for true in (True, 1, "yes", [0], SimpleLazyObject(lambda: 2)):
            assert read({"fail_silently": true}).fail_silently is True
        for false in (None, False, 0, "", SimpleLazyObject(lambda: 0)):
            assert read({"fail_silently": false}).fail_silently is configured


@override_settings(LETTERMINT_FAIL_SILENTLY=True)
def test_the_fail_silently_of_a_mailer_overrides_the_setting() -> None:
    assert config(fail_silently=False, alias="news").fail_silently is False
    given = merged({"api_token": TOKEN}, fail_silently=False)
    assert backend_config(given).fail_silently is False


@pytest.mark.parametrize("value", ["false", 0, 1, "", None])
def test_in_settings_and_options_fail_silently_is_true_or_false(value: object) -> None:
    with (
        override_settings(LETTERMINT_FAIL_SILENTLY=value),
        pytest.raises(AnymailConfigurationError, match="must be True or False"),
    ):
        relay()
    with pytest.raises(AnymailConfigurationError, match="must be True or False"):
        relay(alias="news", fail_silently=value)


# -- None --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VALUES, "password", "use_tls", "ssl_certfile"])
def test_a_keyword_of_none_uses_the_configured_value(name: str) -> None:
    options = {"api_token": TOKEN}
    if name in VALUES:
        options[name] = VALUES[name]
    with override_settings(**as_settings(options)):
        assert backend_config({name: None}) is backend_config({})
    with override_settings(MAILERS={"default": {"OPTIONS": options}}):
        expected = backend_config(merged(options))
        assert backend_config(merged(options, **{name: None})) is expected


@pytest.mark.parametrize("name", [*QUEUE_VALUES, "host", "password", "use_tls"])
def test_a_queue_keyword_of_none_uses_the_configured_value(name: str) -> None:
    with override_settings(**as_settings(QUEUE_VALUES)):
        assert queue_config({name: None}) is queue_config({})


@pytest.mark.parametrize(
    "name", ["password", "username", "api_token", "host", "use_tls"]
)
def test_the_queue_refuses_options_of_the_backend_that_sends(name: str) -> None:
    with pytest.raises(AnymailConfigurationError, match=f"{name} is not an option"):
        queue_config({name: "lm_other"})


def test_a_subclass_may_repeat_the_signature_of_djangos_backend() -> None:
    class Repeating(EmailBackend):
        def __init__(  # noqa: PLR0917 - as in Django
            self,
            host: str | None = None,
            port: int | None = None,
            username: str | None = None,
            password: str | None = None,
            use_tls: bool | None = None,  # noqa: FBT001 - as in Django
            fail_silently: bool = False,  # noqa: FBT001, FBT002 - as in Django
            use_ssl: bool | None = None,  # noqa: FBT001 - as in Django
            timeout: int | None = None,
            ssl_keyfile: str | None = None,
            ssl_certfile: str | None = None,
            **kwargs: Any,
        ) -> None:
            given = {**locals(), **kwargs}
            for name in ("self", "kwargs", "__class__"):
                del given[name]
            super().__init__(**given)

    with override_settings(LETTERMINT_API_TOKEN=TOKEN):
        assert Repeating().config == EmailBackend().config


def test_a_token_of_none_is_not_that_of_the_settings() -> None:
    with (
        override_settings(LETTERMINT_API_TOKEN=TOKEN),
        pytest.raises(AnymailConfigurationError, match="keyword api_token must be"),
    ):
        backend_config({"api_token": None})


# -- the OPTIONS of a mailer -------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"password": None}, {"username": None}])
def test_a_none_does_not_override_a_password_in_the_options(
    given: dict[str, None],
) -> None:
    options = {"username": "shop", "password": TOKEN}
    mailers = {"default": {"OPTIONS": options}}
    with override_settings(LETTERMINT_API_TOKEN="lm_settings", MAILERS=mailers):
        found = backend_config(merged(options, **given))

    assert found.relay.endpoint.token.reveal() == TOKEN
    assert found.relay.endpoint.username == "shop"
    assert found.keywords == ()


def test_a_token_by_keyword_overrides_the_password_of_the_mailer() -> None:
    options = {"password": "lm_mailer"}
    with override_settings(MAILERS={"default": {"OPTIONS": options}}):
        found = backend_config(merged(options, api_token=TOKEN))

    assert found.relay.endpoint.token.reveal() == TOKEN
    assert found.keywords == ("api_token",)


def test_an_option_that_equals_that_of_the_mailer_is_no_keyword() -> None:
    options = {"api_token": "".join(["lm_", "equal"])}
    with override_settings(MAILERS={"default": {"OPTIONS": {"api_token": "lm_equal"}}}):
        assert backend_config(merged(options)).keywords == ()
        assert backend_config(merged(options, port=587)).keywords == ("port",)


@pytest.mark.parametrize("mailers", [None, {}, {"default": None}, {"default": {}}])
def test_mailers_that_django_refuses_are_left_to_it(mailers: object) -> None:
    with override_settings(MAILERS=mailers):
        assert backend_config(merged({"api_token": TOKEN})).keywords == ("api_token",)


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS are new in Django 6.1")
@pytest.mark.filterwarnings("ignore:get_connection")
def test_get_connection_with_none_uses_the_options_of_the_mailer() -> None:
    options = {"username": "shop", "password": TOKEN, "port": 587, "timeout": 3}
    mailers = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}
    with override_settings(MAILERS=mailers):
        mailer: Any = mail.mailers.default
        for name in (*options, "host"):
            keywords: dict[str, Any] = {name: None}
            backend: Any = mail.get_connection(**keywords)
            assert backend.config == mailer.config


# -- lazy values -------------------------------------------------------------------------


def lazily(value: Any) -> list[object]:
    """Return a value in each of Django's lazy forms."""
    forms: list[object] = [
        SimpleLazyObject(lambda: value),
        lazy(lambda: value, type(value))(),
        SimpleLazyObject(lambda: SimpleLazyObject(lambda: value)),
    ]
    return [*forms, lazystr(value)] if isinstance(value, str) else forms


@pytest.mark.parametrize("name", [*VALUES, "api_token"])
def test_a_lazy_value_is_resolved_wherever_it_is(name: str) -> None:
    options = {"api_token": TOKEN, **VALUES}
    options = {each: options[each] for each in ("api_token", name)}
    with override_settings(**as_settings(options)):
        expected = backend_config({}).relay
    for form in lazily(options[name]):
        given = options | {name: form}
        anymail = as_settings(given)
        for settings in (anymail, {"ANYMAIL": anymail}):
            with override_settings(**settings):
                assert backend_config({}).relay == expected
        with override_settings(ANYMAIL=lazy(partial(dict, anymail), dict)()):
            assert backend_config({}).relay == expected
        assert backend_config({**given}).relay == expected
        assert backend_config({**given, "alias": "news"}).relay == expected


@pytest.mark.parametrize("name", QUEUE_VALUES)
def test_a_lazy_value_of_the_queue_is_resolved(name: str) -> None:
    for form in lazily(QUEUE_VALUES[name]):
        assert getattr(queue_config({name: form}), name) == QUEUE_VALUES[name]


def test_lazy_values_inside_of_others_are_resolved() -> None:
    for form in lazily(7):
        assert relay(pool={"max_size": form}).endpoint.pool.max_size == 7
    for form in lazily("whsec_1"):
        for value in (form, [form], ("whsec_2", form)):
            with override_settings(LETTERMINT_SIGNING_SECRET=value):
                assert webhook_config().signing_secrets[-1].reveal() == "whsec_1"


def test_a_lazy_none_is_treated_as_none() -> None:
    with override_settings(LETTERMINT_TIMEOUT=3):
        assert relay(timeout=SimpleLazyObject(lambda: None)).timeout == 3


def test_a_lazy_text_is_asked_at_each_mail() -> None:
    tokens = iter(["lm_one", "lm_two"])
    with override_settings(LETTERMINT_API_TOKEN=lazy(lambda: next(tokens), str)()):
        found = [backend_config({}).relay.endpoint.token.reveal() for _ in range(2)]

    assert found == ["lm_one", "lm_two"]


@pytest.mark.parametrize(
    ("name", "value"), [("port", "465"), ("host", ""), ("pool", 7)]
)
def test_a_wrong_lazy_value_is_named_by_its_option(name: str, value: object) -> None:
    for form in lazily(value):
        with (
            override_settings(**as_settings({name: form})),
            pytest.raises(AnymailConfigurationError) as raised,
        ):
            relay()
        assert str(raised.value).startswith(f"LETTERMINT_{name.upper()} must be ")
        assert repr(value) in str(raised.value)


def sealed() -> str:
    raise OSError("the vault is sealed")


@pytest.mark.parametrize("name", ["api_token", "port", "signing_secret"])
def test_a_lazy_value_that_fails_is_named_by_its_option(name: str) -> None:
    options = {"api_token": TOKEN, "port": 587}
    for form in (SimpleLazyObject(sealed), lazy(sealed, str)()):
        for given in ({**options, name: form}, merged(options, **{name: form})):
            with (
                override_settings(MAILERS={"default": {"OPTIONS": options}}),
                pytest.raises(AnymailConfigurationError) as raised,
            ):
                backend_config(given)
            text = f"the constructor keyword {name} cannot be read (OSError)."
            assert str(raised.value).endswith(text)
            assert str(raised.value.__cause__) == "the vault is sealed"
