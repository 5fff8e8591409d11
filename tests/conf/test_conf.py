"""Where options are found, what follows from them, and how errors read."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
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
    BackendConfig,
    Endpoint,
    PoolConfig,
    RelayConfig,
    Secret,
    WebhookConfig,
    backend_config,
    webhook_config,
)

TOKEN = "lm_5f0c1e9a7b"

#: Django puts the alias in front of the text since 6.1, which has MAILERS.
ALIAS = "MAILERS['news']: " if django.VERSION >= (6, 1) else ""


def config(**options: Any) -> BackendConfig:
    return backend_config({"api_token": TOKEN, **options})


def relay(**options: Any) -> RelayConfig:
    return config(**options).relay


def refusal(**options: Any) -> str:
    with pytest.raises(AnymailConfigurationError) as raised:
        config(**options)
    return str(raised.value)


def test_a_token_is_all_that_is_needed() -> None:
    assert config() == BackendConfig(
        relay=RelayConfig(
            endpoint=Endpoint(
                token=Secret(TOKEN),
                host="smtp.lettermint.co",
                port=465,
                security="tls",
                username="lettermint",
                auth_mechanism=None,
                ca_file=None,
                local_hostname=None,
                pool=PoolConfig(),
                pooled=True,
            ),
            timeout=10,
            final_reply_timeout=60,
            deadline=120,
            retries=8,
            pipelining=True,
            chunking=False,
            batch_connections=None,
            idempotency=True,
        ),
        correlation_key="django_message_id",
        send_defaults={},
        fail_silently=False,
        ignore_unsupported_features=False,
        ignore_recipient_status=False,
        debug_api_requests=False,
        idna_encoder=config().idna_encoder,
        keywords=("api_token",),
    )


def test_what_shapes_a_connection_tells_endpoints_apart() -> None:
    def endpoint(**options: Any) -> Endpoint:
        return relay(**options).endpoint

    patient = {"timeout": 11, "final_reply_timeout": 1, "deadline": 9, "retries": 0}
    assert endpoint() == endpoint(**patient, batch_connections=2)
    assert len({endpoint(), endpoint(api_token="other"), endpoint(port=587)}) == 3


def test_the_configuration_shows_no_token() -> None:
    assert TOKEN not in repr(config())


def test_the_configuration_is_not_pickled_with_its_token() -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(relay())


@pytest.mark.parametrize(
    ("settings", "options", "host"),
    [
        ({"LETTERMINT_HOST": "bare"}, {}, "bare"),
        ({"LETTERMINT_HOST": "bare", "ANYMAIL_LETTERMINT_HOST": "flat"}, {}, "flat"),
        (
            {
                "ANYMAIL_LETTERMINT_HOST": "flat",
                "ANYMAIL": {"LETTERMINT_HOST": "dict"},
            },
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


def test_settings_are_read_anew_each_time() -> None:
    with override_settings(LETTERMINT_HOST="one"):
        assert relay().endpoint.host == "one"
    assert relay().endpoint.host == "smtp.lettermint.co"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_also_a_setting(name: str) -> None:
    setting = f"LETTERMINT_{name.upper()}"
    kwargs = {} if name == "api_token" else {"api_token": TOKEN}
    of_webhooks = name in WEBHOOK_OPTIONS

    with (
        override_settings(**{setting: object()}),
        pytest.raises(ImproperlyConfigured, match=f"^{setting} must be "),
    ):
        webhook_config() if of_webhooks else backend_config(kwargs)


def test_all_options_are_taken_out_of_the_keywords() -> None:
    options: dict[str, Any] = {name: option.default for name, option in OPTIONS.items()}
    options["api_token"] = TOKEN

    backend_config(options)

    assert options.keys().isdisjoint(OPTIONS)


def test_the_keywords_of_django_are_left() -> None:
    options = {"alias": "news", "_ignore_unknown_kwargs": {"colour"}, "colour": "red"}
    given = {"api_token": TOKEN, **options}

    backend_config(given)

    assert given == options


@pytest.mark.parametrize(
    "settings",
    [
        {"ANYMAIL": {"LETTERMINT_IGNORE_UNSUPPORTED_FEATURES": True}},
        {"ANYMAIL_LETTERMINT_IGNORE_UNSUPPORTED_FEATURES": True},
        {"LETTERMINT_IGNORE_UNSUPPORTED_FEATURES": True},
        {"ANYMAIL": {"IGNORE_UNSUPPORTED_FEATURES": True}},
        {"ANYMAIL_IGNORE_UNSUPPORTED_FEATURES": True},
    ],
)
def test_an_option_of_anymail_is_set_for_lettermint_alone_or_for_all(
    settings: dict[str, Any],
) -> None:
    assert config().ignore_unsupported_features is False
    with override_settings(**settings):
        assert config().ignore_unsupported_features is True


@override_settings(
    ANYMAIL={
        "IGNORE_RECIPIENT_STATUS": True,
        "LETTERMINT_IGNORE_RECIPIENT_STATUS": False,
    }
)
def test_an_option_of_anymail_for_lettermint_wins_over_that_for_all() -> None:
    assert config().ignore_recipient_status is False


@pytest.mark.parametrize(
    ("encoder", "encoded"),
    [
        ("idna2008", "xn--strae-oqa.example"),
        ("idna2003", "strasse.example"),
        ("none", "straße.example"),
        (str.upper, "STRASSE.EXAMPLE"),
        ("django.utils.encoding.iri_to_uri", "stra%C3%9Fe.example"),
    ],
)
def test_the_idna_encoder_is_what_anymail_takes(encoder: object, encoded: str) -> None:
    with override_settings(ANYMAIL={"IDNA_ENCODER": encoder}):
        assert config().idna_encoder("straße.example") == encoded


def test_the_idna_encoder_uts46_needs_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = ModuleType("uts46")
    package.encode = str.encode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uts46", package)
    assert config(idna_encoder="uts46").idna_encoder("a.example") == "a.example"

    monkeypatch.setitem(sys.modules, "uts46", None)
    assert "keyword idna_encoder must be" in refusal(idna_encoder="uts46")


@pytest.mark.parametrize("encoder", ["nope", "django.nope", "django.VERSION", 7])
def test_another_idna_encoder_is_refused(encoder: object) -> None:
    with override_settings(ANYMAIL={"IDNA_ENCODER": encoder}):
        assert refusal().startswith("ANYMAIL['IDNA_ENCODER'] must be ")


@override_settings(LETTERMINT_API_TOKEN="other")
def test_a_password_overrides_the_token() -> None:
    assert relay(password="pass").endpoint.token.reveal() == "pass"


def test_credentials_of_none_are_not_given() -> None:
    assert relay(username=None, password=None) == relay()


@override_settings(LETTERMINT_FAIL_SILENTLY=True)
def test_the_fail_silently_that_older_djangos_always_pass_overrides_no_setting() -> (
    None
):
    assert config(fail_silently=False).fail_silently is True


@override_settings(LETTERMINT_FAIL_SILENTLY=True)
def test_the_fail_silently_of_a_mailer_overrides_the_setting() -> None:
    assert config(fail_silently=False, alias="news").fail_silently is False


@pytest.mark.parametrize("port", [25, 587, 2525, 2465, 2587])
def test_the_ports_of_submission_use_starttls(port: int) -> None:
    assert relay(port=port).endpoint.security == "starttls"


def test_port_465_uses_tls_from_the_first_byte() -> None:
    assert relay(port=465).endpoint.security == "tls"


@pytest.mark.parametrize(
    ("security", "port"), [("tls", 465), ("starttls", 587), ("STARTTLS", 587)]
)
def test_the_security_decides_the_port(security: str, port: int) -> None:
    assert relay(security=security).endpoint.port == port


def test_a_given_port_stays_whatever_the_security() -> None:
    assert relay(security="starttls", port=465).endpoint.port == 465


def test_another_port_needs_the_security() -> None:
    assert (
        'port is 26, which is none of 465, 25, 587, 2525, 2465, 2587: set security="tls"'
        in refusal(port=26)
    )
    assert relay(port=26, security="tls").endpoint.security == "tls"


@pytest.mark.parametrize("value", ["ssl", True, "", 1])
def test_an_unknown_security_is_refused(value: object) -> None:
    problem = refusal(security=value)

    assert "security must be one of 'tls', 'starttls', 'plaintext'" in problem


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1"]
)
def test_plaintext_stays_on_this_machine(host: str) -> None:
    assert relay(host=host, security="plaintext").endpoint.security == "plaintext"


@pytest.mark.parametrize(
    "host",
    [
        "smtp.lettermint.co",
        "localhost.evil.example",
        "128.0.0.1",
        "::2",
        "0.0.0.0",
        "127.1",
    ],
)
def test_plaintext_to_another_machine_is_refused(host: str) -> None:
    assert 'security must not be "plaintext"' in refusal(
        host=host, security="plaintext"
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("lettermint.co", True),
        ("SMTP.Lettermint.CO", True),
        ("localhost", False),
        ("127.0.0.2", False),
        ("notlettermint.co", False),
        ("lettermint.co.example", False),
        ("10.0.0.1", False),
    ],
)
def test_only_hosts_that_know_idempotency_keys_get_them_by_default(
    host: str, *, expected: bool
) -> None:
    assert relay(host=host).idempotency is expected


@pytest.mark.parametrize("host", ["lettermint.co", "relay.example"])
@pytest.mark.parametrize("value", [True, False])
def test_idempotency_can_be_set_for_any_host(host: str, *, value: bool) -> None:
    assert relay(host=host, idempotency=value).idempotency is value


def test_without_a_pool_the_path_is_the_same_with_defaults() -> None:
    config = relay(pool=False)

    assert (config.endpoint.pooled, config.endpoint.pool) == (False, PoolConfig())


def test_a_batch_cannot_use_more_connections_than_the_pool_has() -> None:
    problem = refusal(batch_connections=11)

    assert "batch_connections must not exceed the pool's max_size, 10" in problem
    assert relay(batch_connections=5, pool={"max_size": 5}).batch_connections == 5


def test_without_a_pool_a_batch_can_use_any_number_of_connections() -> None:
    assert relay(batch_connections=5, pool=False).batch_connections == 5


def test_a_missing_token_is_told_with_the_places_to_set_it() -> None:
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


def test_an_error_names_the_password_if_that_is_refused() -> None:
    assert refusal(password="").startswith("the constructor keyword password must be")


def test_the_error_of_a_mailer_is_of_the_type_that_django_expects() -> None:
    with pytest.raises(AnymailInvalidMailer) as raised:
        config(port="x", alias="default")

    assert isinstance(
        raised.value, getattr(mail, "InvalidMailer", ImproperlyConfigured)
    )


def test_the_error_of_a_keyword_is_not_about_mailers() -> None:
    with pytest.raises(AnymailConfigurationError) as raised:
        config(port="x")

    assert not isinstance(raised.value, AnymailInvalidMailer)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("prot", "Did you mean 'port'?"),
        ("use_tls", "Did you mean 'security'?"),
        ("api_key", "Did you mean 'api_token'?"),
        ("colour", "Known are api_token, host, port, "),
    ],
)
def test_an_unknown_keyword_is_refused_with_a_suggestion(
    name: str, suggestion: str
) -> None:
    problem = refusal(**{name: 1})

    assert f"the constructor keyword {name} is not an option. {suggestion}" in problem


def test_an_unknown_option_of_a_mailer_is_refused() -> None:
    problem = refusal(prot=25, alias="news")

    assert problem.startswith("MAILERS['news']['OPTIONS']['prot'] is not an option. ")


@override_settings(ANYMAIL={"LETTERMINT_API_KEY": TOKEN})
def test_an_unknown_name_in_anymail_is_refused_with_a_suggestion() -> None:
    assert refusal() == (
        "ANYMAIL['LETTERMINT_API_KEY'] is not an option. "
        "Did you mean 'LETTERMINT_API_TOKEN'?"
    )


@override_settings(ANYMAIL={"LETTERMINT_PASSWORD": TOKEN})
def test_the_password_is_a_keyword_only() -> None:
    assert "Did you mean 'LETTERMINT_API_TOKEN'?" in refusal()


@override_settings(
    ANYMAIL={
        "MAILGUN_API_KEY": "x",
        "SEND_DEFAULTS": {},
        "LETTERMINT_SEND_DEFAULTS": {"tag": "a"},
        "LETTERMINT_IDNA_ENCODER": "idna2003",
        "LETTERMINT_SIGNING_SECRET": "whsec_1",
        "LETTERMINT_WEBHOOK_DEDUPE": False,
        7: "odd",
    }
)
def test_the_names_of_others_and_of_webhooks_are_fine_in_anymail() -> None:
    assert config().send_defaults == {"tag": "a"}


@pytest.mark.parametrize(
    "name", ["ignore_unsupported_features", "ignore_recipient_status"]
)
def test_the_flags_of_anymail_are_checked_like_ours(name: str) -> None:
    assert refusal(**{name: "false"}).startswith(
        f"the constructor keyword {name} must be True or False, not 'false'."
    )


@override_settings(LETTERMINT_SIGNING_SECRET=7)
def test_a_wrong_secret_of_webhooks_stops_no_mail() -> None:
    assert relay().endpoint.token == Secret(TOKEN)


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        (lazystr(""), ()),
        ("whsec_1", (Secret("whsec_1"),)),
        (["whsec_1", "whsec_2"], (Secret("whsec_1"), Secret("whsec_2"))),
    ],
)
def test_webhooks_have_no_one_or_several_secrets(
    value: object, secrets: tuple[Secret, ...]
) -> None:
    with override_settings(LETTERMINT_SIGNING_SECRET=value):
        assert webhook_config().signing_secrets == secrets


@pytest.mark.parametrize("value", [[""], ["whsec_1", ""], [None], {"a": 1}, 7, " "])
def test_an_empty_entry_or_an_odd_secret_of_webhooks_is_refused(value: object) -> None:
    with (
        override_settings(ANYMAIL={"LETTERMINT_SIGNING_SECRET": value}),
        pytest.raises(ImproperlyConfigured, match="LETTERMINT_SIGNING_SECRET"),
    ):
        webhook_config()


@override_settings(LETTERMINT_WEBHOOK_DEDUPE=False, LETTERMINT_CORRELATION_KEY="id")
def test_webhooks_read_the_settings() -> None:
    assert webhook_config() == WebhookConfig(
        signing_secrets=(), dedupe=False, correlation_key="id"
    )


@override_settings(LETTERMINT_SIGNING_SECRET="whsec_1")
def test_a_view_can_have_a_secret_of_its_own() -> None:
    initkwargs = {"signing_secret": "whsec_2"}

    assert webhook_config(initkwargs).signing_secrets == (Secret("whsec_2"),)
    assert initkwargs == {}
