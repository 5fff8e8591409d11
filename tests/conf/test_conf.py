"""Where options are found, what follows from them, and how errors read."""

from __future__ import annotations

from typing import Any

import django
import pytest
from anymail.exceptions import AnymailConfigurationError, AnymailInvalidMailer
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import lazystr

from django_lettermint.conf import (
    OPTIONS,
    WEBHOOK_OPTIONS,
    PoolConfig,
    Secret,
    WebhookConfig,
    backend_config,
    webhook_config,
)

from .reading import TOKEN, config, refusal, relay

#: Django puts the alias in front of the text since 6.1, which has MAILERS.
ALIAS = "MAILERS['news']: " if django.VERSION >= (6, 1) else ""


def test_a_token_is_all_that_is_needed() -> None:
    found = relay()

    assert found.endpoint.token == Secret(TOKEN)
    assert found.endpoint.host == "smtp.lettermint.co"
    assert (found.endpoint.port, found.endpoint.security) == (465, "tls")
    assert (found.endpoint.pooled, found.endpoint.pool) == (True, PoolConfig())
    assert (found.idempotency, found.batch_connections) == (True, None)


def test_endpoints_differ_by_what_shapes_a_connection_only() -> None:
    patient = {"timeout": 11, "final_reply_timeout": 1, "deadline": 9, "retries": 0}
    endpoint = relay().endpoint

    assert relay(**patient, batch_connections=2).endpoint == endpoint
    others = [relay(api_token="other").endpoint, relay(port=587).endpoint]
    assert len({endpoint, *others}) == 3


# -- where options are found -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "host"),
    [
        ({"LETTERMINT_HOST": "bare"}, {}, "bare"),
        ({"LETTERMINT_HOST": "bare", "ANYMAIL_LETTERMINT_HOST": "flat"}, {}, "flat"),
        (
            {"ANYMAIL_LETTERMINT_HOST": "flat", "ANYMAIL": {"LETTERMINT_HOST": "dict"}},
            {},
            "dict",
        ),
        ({"ANYMAIL": {"LETTERMINT_HOST": "dict"}}, {"host": "keyword"}, "keyword"),
    ],
)
def test_the_nearest_place_wins(
    settings: dict[str, Any], options: dict[str, Any], host: str
) -> None:
    with override_settings(**settings):
        assert relay(**options).endpoint.host == host


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_also_a_setting(name: str) -> None:
    setting = f"LETTERMINT_{name.upper()}"
    kwargs = {} if name == "api_token" else {"api_token": TOKEN}

    with (
        override_settings(**{setting: object()}),
        pytest.raises(ImproperlyConfigured, match=f"^{setting} must be "),
    ):
        webhook_config() if name in WEBHOOK_OPTIONS else backend_config(kwargs)


def test_all_options_are_taken_out_of_the_keywords_and_djangos_are_left() -> None:
    ours = {name: option.default for name, option in OPTIONS.items()}
    djangos = {"alias": "news", "_ignore_unknown_kwargs": {"colour"}, "colour": "red"}
    given = {**ours, "api_token": TOKEN, **djangos}

    backend_config(given)

    assert given == djangos


@pytest.mark.parametrize(
    "settings",
    [
        {"ANYMAIL": {"LETTERMINT_IGNORE_RECIPIENT_STATUS": True}},
        {"ANYMAIL_LETTERMINT_IGNORE_RECIPIENT_STATUS": True},
        {"LETTERMINT_IGNORE_RECIPIENT_STATUS": True},
        {"ANYMAIL": {"IGNORE_RECIPIENT_STATUS": True}},
        {"ANYMAIL_IGNORE_RECIPIENT_STATUS": True},
    ],
)
def test_an_option_of_anymail_is_set_for_lettermint_or_for_all(
    settings: dict[str, Any],
) -> None:
    with override_settings(**settings):
        assert config().ignore_recipient_status is True
    anymail = {"LETTERMINT_IGNORE_RECIPIENT_STATUS": False}
    with override_settings(ANYMAIL_IGNORE_RECIPIENT_STATUS=True, ANYMAIL=anymail):
        assert config().ignore_recipient_status is False


# -- what follows from them --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "port", "security"),
    [
        *(({"port": port}, port, "starttls") for port in (25, 587, 2525, 2465, 2587)),
        ({"port": 465}, 465, "tls"),
        ({"port": 26, "security": "tls"}, 26, "tls"),
        ({"port": 465, "security": "starttls"}, 465, "starttls"),
        ({"security": "tls"}, 465, "tls"),
        ({"security": "STARTTLS"}, 587, "starttls"),
        ({"security": "plaintext", "host": "localhost"}, 25, "plaintext"),
    ],
)
def test_port_and_security_follow_from_each_other(
    options: dict[str, Any], port: int, security: str
) -> None:
    endpoint = relay(**options).endpoint

    assert (endpoint.port, endpoint.security) == (port, security)


def test_another_port_needs_the_security() -> None:
    known = "465, 25, 587, 2525, 2465, 2587"
    problem = f'port is 26, which is none of {known}: set security="tls"'

    assert problem in refusal(port=26)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_plaintext_stays_on_this_machine(host: str) -> None:
    assert relay(host=host, security="plaintext").endpoint.security == "plaintext"


@pytest.mark.parametrize(
    "host",
    ["smtp.lettermint.co", "localhost.evil.example", "128.0.0.1", "::2", "0.0.0.0"],
)
def test_plaintext_to_another_machine_is_refused(host: str) -> None:
    problem = refusal(host=host, security="plaintext")

    assert 'security must not be "plaintext"' in problem


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("lettermint.co", True),
        ("SMTP.Lettermint.CO", True),
        ("localhost", False),
        ("notlettermint.co", False),
        ("lettermint.co.example", False),
    ],
)
def test_only_lettermints_hosts_get_idempotency_keys_by_default(
    host: str, *, expected: bool
) -> None:
    assert relay(host=host).idempotency is expected
    assert relay(host=host, idempotency=True).idempotency is True
    assert relay(host=host, idempotency=False).idempotency is False


def test_a_batch_uses_no_more_connections_than_the_pool_has() -> None:
    problem = "batch_connections must not exceed the pool's max_size, 10"

    assert problem in refusal(batch_connections=11)
    assert relay(batch_connections=10).batch_connections == 10
    assert relay(pool={"max_size": 1}).batch_connections is None
    assert relay(batch_connections=11, pool=False).batch_connections == 11


# -- how errors read ---------------------------------------------------------------------


def test_the_error_of_a_missing_token_names_the_places_to_set_it() -> None:
    with pytest.raises(AnymailConfigurationError) as raised:
        backend_config({})

    assert str(raised.value) == (
        "api_token is not set. Define LETTERMINT_API_TOKEN in the settings, or "
        "'api_token' in the OPTIONS of the mailer. Copy the project's sending token "
        "from the Lettermint dashboard; if it comes from the environment, see that the "
        "variable is set."
    )


@pytest.mark.parametrize(
    ("settings", "options", "place"),
    [
        ({"LETTERMINT_PORT": "x"}, {}, "LETTERMINT_PORT"),
        ({"ANYMAIL_LETTERMINT_PORT": "x"}, {}, "ANYMAIL_LETTERMINT_PORT"),
        ({"ANYMAIL": {"LETTERMINT_PORT": "x"}}, {}, "ANYMAIL['LETTERMINT_PORT']"),
        ({}, {"port": "x"}, "the constructor keyword port"),
        ({}, {"port": "x", "alias": "a"}, "MAILERS['a']['OPTIONS']['port']"),
        ({"LETTERMINT_PORT": "x"}, {"alias": "news"}, f"{ALIAS}LETTERMINT_PORT"),
        (
            {},
            {"port": "x", "alias": "news", "_ignore_unknown_kwargs": {"port"}},
            f"{ALIAS}the constructor keyword port",
        ),
    ],
)
def test_an_error_names_the_place_the_rule_and_the_remedy(
    settings: dict[str, Any], options: dict[str, Any], place: str
) -> None:
    with override_settings(**settings):
        assert refusal(**options) == (
            f"{place} must be a whole number, from 1 to 65535, not 'x'. "
            "Correct it, or remove it for the default, 465."
        )


def test_the_error_of_a_mailer_is_of_the_type_that_django_expects() -> None:
    with pytest.raises(AnymailInvalidMailer) as raised:
        config(port="x", alias="default")
    expected = getattr(mail, "InvalidMailer", ImproperlyConfigured)
    assert isinstance(raised.value, expected)

    with pytest.raises(AnymailConfigurationError) as raised_by_keyword:
        config(port="x")
    assert not isinstance(raised_by_keyword.value, AnymailInvalidMailer)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prot": 1}, "the constructor keyword prot | Did you mean 'port'?"),
        ({"use_tls": 1}, "the constructor keyword use_tls | Did you mean 'security'?"),
        ({"api_key": 1}, "keyword api_key | Did you mean 'api_token'?"),
        ({"colour": 1}, "keyword colour | Known are api_token, host, port, "),
        ({"token": None}, "keyword token | Did you mean 'api_token'?"),
        ({"tenant_token": None}, "keyword tenant_token | Did you mean 'tenant"),
        ({"ssl_certfile": "x"}, "keyword ssl_certfile | "),
        ({"use_ssl": True}, "keyword use_ssl | Did you mean 'security'?"),
        ({"prot": 1, "alias": "news"}, "MAILERS['news']['OPTIONS']['prot'] | Did "),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(
    options: dict[str, Any], problem: str
) -> None:
    assert problem.replace("|", "is not an option.") in refusal(**options)


@pytest.mark.parametrize("name", ["API_KEY", "PASSWORD"])
def test_an_unknown_name_in_anymail_is_refused_with_a_suggestion(name: str) -> None:
    with override_settings(ANYMAIL={f"LETTERMINT_{name}": TOKEN}):
        assert refusal() == (
            f"ANYMAIL['LETTERMINT_{name}'] is not an option. "
            "Did you mean 'LETTERMINT_API_TOKEN'?"
        )


@override_settings(
    ANYMAIL={
        "MAILGUN_API_KEY": "x",
        "SEND_DEFAULTS": {"tag": "all", "route": "all"},
        "LETTERMINT_SEND_DEFAULTS": {"tag": "a"},
        "LETTERMINT_SIGNING_SECRET": 7,
        "LETTERMINT_QUEUE_NAME": "mail",
        7: "odd",
    }
)
def test_other_names_in_anymail_stop_no_mail() -> None:
    assert config().send_defaults == {"tag": "a", "route": "all"}


# -- webhooks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        (None, []),
        ("", []),
        ([], []),
        (lazystr(""), []),
        ("whsec_1", ["whsec_1"]),
        (["whsec_1", lazystr("whsec_2")], ["whsec_1", "whsec_2"]),
    ],
)
def test_webhooks_have_no_one_or_several_secrets(
    value: object, secrets: list[str]
) -> None:
    with override_settings(LETTERMINT_SIGNING_SECRET=value):
        found = webhook_config().signing_secrets
    assert found == tuple(map(Secret, secrets))


@pytest.mark.parametrize("value", [[""], ["whsec_1", ""], [None], {"a": 1}, 7, " "])
def test_an_empty_entry_or_an_odd_secret_of_webhooks_is_refused(value: object) -> None:
    with (
        override_settings(ANYMAIL={"LETTERMINT_SIGNING_SECRET": value}),
        pytest.raises(ImproperlyConfigured, match="LETTERMINT_SIGNING_SECRET"),
    ):
        webhook_config()


@override_settings(LETTERMINT_WEBHOOK_DEDUPE=False, LETTERMINT_CORRELATION_KEY="id")
def test_webhooks_read_the_settings_and_the_secret_of_a_view() -> None:
    given = {"signing_secret": "whsec_2"}

    assert webhook_config(given) == WebhookConfig(
        signing_secrets=(Secret("whsec_2"),), dedupe=False, correlation_key="id"
    )
    assert given == {}
