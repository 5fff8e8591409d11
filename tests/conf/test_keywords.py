"""Keywords as callers pass them: truth values, None for "not given", lazy values."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_lettermint.conf import RelayConfig

TOKEN = "lm_5f0c1e9a7b"
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
EMPTY: list[object] = [None, 0, "", False]


def as_settings(options: dict[str, Any]) -> dict[str, Any]:
    return {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}


def relay(**keywords: Any) -> RelayConfig:
    return backend_config({"api_token": TOKEN, **keywords}).relay


# -- fail_silently ------------------------------------------------------------------------


@pytest.mark.parametrize("read", [backend_config, queue_config])
@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("value", [True, 1, "yes", [0], SimpleLazyObject(lambda: 2)])
def test_a_true_fail_silently_counts_as_python_counts_it(
    read: Callable[[dict[str, Any]], Any], value: object, *, configured: bool
) -> None:
    with override_settings(
        LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_FAIL_SILENTLY=configured
    ):
        assert read({"fail_silently": value}).fail_silently is True


@pytest.mark.parametrize("read", [backend_config, queue_config])
@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("value", EMPTY)
def test_a_fail_silently_that_says_nothing_is_as_configured(
    read: Callable[[dict[str, Any]], Any], value: object, *, configured: bool
) -> None:
    with override_settings(
        LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_FAIL_SILENTLY=configured
    ):
        assert read({"fail_silently": value}).fail_silently is configured


@pytest.mark.parametrize("value", ["false", 0, 1, "", None])
def test_in_settings_and_options_fail_silently_is_true_or_false(value: object) -> None:
    with (
        override_settings(LETTERMINT_FAIL_SILENTLY=value),
        pytest.raises(AnymailConfigurationError, match="must be True or False"),
    ):
        relay()
    with pytest.raises(AnymailConfigurationError, match="must be True or False"):
        relay(alias="news", fail_silently=value)


# -- None ---------------------------------------------------------------------------------


def test_every_option_has_a_value_in_these_tests() -> None:
    unlike = {"api_token", "ca_file", "signing_secret", "webhook_dedupe"}

    assert OPTIONS.keys() - unlike <= VALUES.keys()
    assert QUEUE_OPTIONS.keys() <= QUEUE_VALUES.keys()


@pytest.mark.parametrize("name", VALUES)
def test_a_keyword_of_none_leaves_what_is_configured(name: str) -> None:
    with override_settings(
        LETTERMINT_API_TOKEN=TOKEN, **as_settings({name: VALUES[name]})
    ):
        assert backend_config({name: None}) is backend_config({})


@pytest.mark.parametrize("name", [*QUEUE_VALUES, "host", "password", "use_tls"])
def test_a_keyword_of_none_leaves_what_is_configured_for_the_queue(name: str) -> None:
    with override_settings(**as_settings(QUEUE_VALUES)):
        assert queue_config({name: None}) is queue_config({})


@pytest.mark.parametrize(
    "name", ["password", "username", "api_token", "host", "use_tls"]
)
def test_the_queue_refuses_what_belongs_to_the_backend_that_sends(name: str) -> None:
    with pytest.raises(AnymailConfigurationError, match=f"{name} is not an option"):
        queue_config({name: "lm_other"})


def test_a_subclass_may_repeat_the_signature_of_djangos_backend() -> None:
    class Repeating(EmailBackend):
        def __init__(  # noqa: PLR0917
            self,
            host: str | None = None,
            port: int | None = None,
            username: str | None = None,
            password: str | None = None,
            use_tls: bool | None = None,  # noqa: FBT001
            fail_silently: bool = False,  # noqa: FBT001, FBT002
            use_ssl: bool | None = None,  # noqa: FBT001
            timeout: int | None = None,
            ssl_keyfile: str | None = None,
            ssl_certfile: str | None = None,
            **kwargs: Any,
        ) -> None:
            keywords = {
                name: value
                for name, value in locals().items()
                if name not in {"self", "kwargs", "__class__"}
            }
            super().__init__(**keywords, **kwargs)

    with override_settings(LETTERMINT_API_TOKEN=TOKEN):
        assert Repeating().config == EmailBackend().config


@pytest.mark.parametrize("name", ["use_tls", "use_ssl", "ssl_certfile"])
def test_djangos_keywords_that_say_something_are_refused(name: str) -> None:
    with pytest.raises(AnymailConfigurationError, match=f"{name} is not an option"):
        relay(**{name: True})


def test_a_token_of_none_is_not_that_of_the_settings() -> None:
    with (
        override_settings(LETTERMINT_API_TOKEN=TOKEN),
        pytest.raises(AnymailConfigurationError, match="keyword api_token must be"),
    ):
        backend_config({"api_token": None})


@pytest.mark.parametrize("name", ["token", "api_key", "api_tokn", "tenant_token"])
def test_a_misspelt_token_of_none_is_refused(name: str) -> None:
    with pytest.raises(AnymailConfigurationError, match=f"{name} is not an option"):
        relay(**{name: None})


@pytest.mark.parametrize("name", VALUES)
def test_an_option_of_a_mailer_survives_a_none(name: str) -> None:
    options = {"api_token": TOKEN, name: VALUES[name]}
    with override_settings(MAILERS={"default": {"OPTIONS": options}}):
        merged = options | {name: None}
        config = backend_config(
            {"alias": "default", **merged, "_ignore_unknown_kwargs": {name}}
        )
        assert config is backend_config({"alias": "default", **options})


@pytest.mark.parametrize("given", [{}, {"password": None}, {"username": None}])
def test_a_password_in_the_options_survives_a_none(given: dict[str, None]) -> None:
    options = {"username": "shop", "password": TOKEN}
    with override_settings(
        LETTERMINT_API_TOKEN="lm_settings", MAILERS={"default": {"OPTIONS": options}}
    ):
        ignored = {"_ignore_unknown_kwargs": {*given}} if given else {}
        config = backend_config({"alias": "default", **options, **given, **ignored})

    assert config.relay.endpoint.token.reveal() == TOKEN
    assert config.relay.endpoint.username == "shop"
    assert config.keywords == ()


def test_a_token_by_keyword_goes_above_the_password_of_the_mailer() -> None:
    options = {"password": "lm_mailer"}
    with override_settings(MAILERS={"default": {"OPTIONS": options}}):
        config = backend_config(
            {
                "alias": "default",
                **options,
                "api_token": TOKEN,
                "_ignore_unknown_kwargs": {"api_token"},
            }
        )

    assert config.relay.endpoint.token.reveal() == TOKEN
    assert config.keywords == ("api_token",)


@pytest.mark.parametrize("mailers", [None, {}, {"default": None}, {"default": {}}])
def test_mailers_that_django_refuses_are_left_to_it(mailers: object) -> None:
    with override_settings(MAILERS=mailers):
        config = backend_config({"alias": "default", "api_token": TOKEN})

    assert config.keywords == ("api_token",)


if django.VERSION >= (6, 1):

    @pytest.mark.filterwarnings("ignore:get_connection")
    @pytest.mark.parametrize(
        "name", ["username", "password", "host", "port", "timeout"]
    )
    def test_get_connection_with_none_leaves_the_options_of_the_mailer(
        name: str,
    ) -> None:
        options = {"username": "shop", "password": TOKEN, "port": 587, "timeout": 3}
        mailers = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}
        with override_settings(MAILERS=mailers):
            keywords: dict[str, Any] = {name: None}
            backend: Any = mail.get_connection(**keywords)
            mailer: Any = mail.mailers.default
            assert backend.config == mailer.config


# -- Lazy values --------------------------------------------------------------------------


def lazily(value: Any) -> list[object]:
    """Return a value in each of Django's lazy forms."""
    forms: list[object] = [
        SimpleLazyObject(lambda: value),
        lazy(lambda: value, type(value))(),
        SimpleLazyObject(lambda: SimpleLazyObject(lambda: value)),
    ]
    return [*forms, lazystr(value)] if isinstance(value, str) else forms


@pytest.mark.parametrize("name", VALUES)
def test_a_lazy_setting_is_resolved(name: str) -> None:
    value = VALUES[name]
    with override_settings(**as_settings({"api_token": TOKEN, name: value})):
        expected = backend_config({})
    for form in lazily(value):
        with override_settings(**as_settings({"api_token": TOKEN, name: form})):
            assert backend_config({}) == expected
        assert backend_config({"api_token": TOKEN, name: form}).relay == expected.relay
        options = {"api_token": TOKEN, name: form, "alias": "news"}
        assert backend_config(options).relay == expected.relay


@pytest.mark.parametrize("name", QUEUE_VALUES)
def test_a_lazy_setting_of_the_queue_is_resolved(name: str) -> None:
    value = QUEUE_VALUES[name]
    for form in lazily(value):
        assert getattr(queue_config({name: form}), name) == value


def test_a_lazy_token_is_resolved_wherever_it_is() -> None:
    for form in lazily(TOKEN):
        for settings in (
            {"LETTERMINT_API_TOKEN": form},
            {"ANYMAIL": {"LETTERMINT_API_TOKEN": form}},
            {"ANYMAIL": SimpleLazyObject(lambda: {"LETTERMINT_API_TOKEN": TOKEN})},
        ):
            with override_settings(**settings):
                assert backend_config({}).relay.endpoint.token.reveal() == TOKEN
        for keywords in ({"api_token": form}, {"password": form}):
            assert backend_config(keywords).relay.endpoint.token.reveal() == TOKEN


def test_lazy_secrets_of_webhooks_are_resolved() -> None:
    for form in lazily("whsec_1"):
        for value in (form, [form], ("whsec_2", form)):
            with override_settings(LETTERMINT_SIGNING_SECRET=value):
                secrets = [each.reveal() for each in webhook_config().signing_secrets]
            assert secrets[-1] == "whsec_1"


def test_lazy_values_inside_the_pool_are_resolved() -> None:
    for form in lazily(7):
        assert relay(pool={"max_size": form}).endpoint.pool.max_size == 7


def test_a_lazy_none_is_a_none() -> None:
    with override_settings(LETTERMINT_TIMEOUT=3):
        assert relay(timeout=SimpleLazyObject(lambda: None)).timeout == 3


def test_what_a_lazy_text_returns_is_asked_at_each_mail() -> None:
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


@pytest.mark.parametrize("name", ["api_token", "port", "signing_secret"])
def test_a_lazy_value_that_fails_is_named_by_its_option(name: str) -> None:
    def fail() -> str:
        raise OSError("the vault is sealed")

    for form in (SimpleLazyObject(fail), lazy(fail, str)()):
        with pytest.raises(AnymailConfigurationError) as raised:
            backend_config({"api_token": TOKEN, name: form})
        text = f"the constructor keyword {name} cannot be read (OSError)."
        assert str(raised.value) == text
        assert str(raised.value.__cause__) == "the vault is sealed"


def test_a_lazy_keyword_that_fails_is_named_above_a_mailer_too() -> None:
    def fail() -> int:
        raise OSError("the vault is sealed")

    options = {"api_token": TOKEN, "port": 587}
    merged = {**options, "port": SimpleLazyObject(fail), "alias": "default"}
    with (
        override_settings(MAILERS={"default": {"OPTIONS": options}}),
        pytest.raises(AnymailConfigurationError, match="keyword port cannot be read"),
    ):
        backend_config({**merged, "_ignore_unknown_kwargs": {"port"}})
