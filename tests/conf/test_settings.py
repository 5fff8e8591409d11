"""Where options are found and when again, what follows from them, how errors read."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import django
import pytest
from anymail.exceptions import AnymailConfigurationError, AnymailInvalidMailer
from django.conf import UserSettingsHolder, settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject

from django_lettermint.conf import (
    OPTIONS,
    PoolConfig,
    Secret,
    WebhookConfig,
    backend_config,
    queue_config,
    webhook_config,
)

from .reading import TOKEN, config, merged, refusal, relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Django puts the alias in front of the text since 6.1, which has MAILERS.
ALIAS = "MAILERS['news']: " if django.VERSION >= (6, 1) else ""
NO_OPTION = (
    "ANYMAIL['LETTERMINT_{}'] is not an option. Did you mean 'LETTERMINT_API_TOKEN'?"
)
UNKNOWN = "the constructor keyword {} is not an option. {}"
#: For type checkers, which know certain attributes of the settings only.
SETTINGS: Any = settings


def host() -> str:
    return backend_config({}).relay.endpoint.host


def token() -> str:
    return backend_config({}).relay.endpoint.token.reveal()


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


@pytest.mark.parametrize("name", ["IGNORE_RECIPIENT_STATUS", "SEND_DEFAULTS"])
def test_an_option_of_anymail_is_set_for_lettermint_or_for_all(name: str) -> None:
    def read(**settings: object) -> object:
        with override_settings(**settings):
            return getattr(config(), name.lower())

    all_of_them: Any = {"IGNORE_RECIPIENT_STATUS": True, "SEND_DEFAULTS": {"tag": "a"}}
    own: Any = {"IGNORE_RECIPIENT_STATUS": False, "SEND_DEFAULTS": {"tag": "b"}}
    for place in (
        f"ANYMAIL_{name}",
        f"ANYMAIL_LETTERMINT_{name}",
        f"LETTERMINT_{name}",
    ):
        assert read(**{place: all_of_them[name]}) == all_of_them[name]
    assert read(ANYMAIL=all_of_them) == all_of_them[name]
    assert read(ANYMAIL={**all_of_them, f"LETTERMINT_{name}": own[name]}) == own[name]


def test_all_options_are_taken_out_of_the_keywords_and_djangos_are_left() -> None:
    ours = {name: option.default for name, option in OPTIONS.items()}
    djangos = {"alias": "news", "_ignore_unknown_kwargs": {"colour"}, "colour": "red"}
    given = {**ours, "api_token": TOKEN, **djangos}

    backend_config(given)

    assert given == djangos


@override_settings(LETTERMINT_WEBHOOK_DEDUPE=False, LETTERMINT_CORRELATION_KEY="id")
def test_webhooks_read_the_settings_and_the_secret_of_a_view() -> None:
    given = {"signing_secret": "whsec_2"}

    assert webhook_config(given) == WebhookConfig(
        signing_secrets=(Secret("whsec_2"),), dedupe=False, correlation_key="id"
    )
    assert given == {}


# -- what follows from them --------------------------------------------------------------

#: Keywords besides the token, and what is read from them.
READ: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"host": "smtp.lettermint.co", "port": 465, "security": "tls"}),
    ({}, {"token": Secret(TOKEN), "pooled": True, "pool": PoolConfig()}),
    *(
        ({"port": port}, {"port": port, "security": "starttls"})
        for port in (25, 587, 2525, 2465, 2587)
    ),
    ({"port": 465}, {"port": 465, "security": "tls"}),
    ({"port": 26, "security": "tls"}, {"port": 26, "security": "tls"}),
    ({"port": 465, "security": "starttls"}, {"port": 465, "security": "starttls"}),
    ({"security": "tls"}, {"port": 465, "security": "tls"}),
    ({"security": "STARTTLS"}, {"port": 587, "security": "starttls"}),
    *(
        ({"security": "plaintext", "host": host}, {"port": 25, "security": "plaintext"})
        for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1")
    ),
    # Only Lettermint's hosts get idempotency keys by default.
    ({}, {"idempotency": True}),
    ({"host": "lettermint.co"}, {"idempotency": True}),
    ({"host": "SMTP.Lettermint.CO"}, {"idempotency": True}),
    ({"host": "localhost"}, {"idempotency": False}),
    ({"host": "notlettermint.co"}, {"idempotency": False}),
    ({"host": "lettermint.co.example"}, {"idempotency": False}),
    ({"host": "localhost", "idempotency": True}, {"idempotency": True}),
    ({"idempotency": False}, {"idempotency": False}),
    ({"batch_connections": 10}, {"batch_connections": 10}),
    ({"batch_connections": 11, "pool": False}, {"batch_connections": 11}),
    ({"pool": {"max_size": 1}}, {"batch_connections": None}),
]


@pytest.mark.parametrize(("options", "expected"), READ, ids=str)
def test_options_follow_from_each_other(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = relay(**options)

    for name, value in expected.items():
        holder = found.endpoint if hasattr(found.endpoint, name) else found
        assert getattr(holder, name) == value


def test_endpoints_differ_by_what_shapes_a_connection_only() -> None:
    patient = {"timeout": 11, "final_reply_timeout": 1, "deadline": 9, "retries": 0}
    endpoint = relay().endpoint

    assert relay(**patient, batch_connections=2).endpoint == endpoint
    others = [relay(api_token="other").endpoint, relay(port=587).endpoint]
    assert len({endpoint, *others}) == 3


# -- how errors read ---------------------------------------------------------------------

RULE = (
    " must be a whole number, from 1 to 65535, not 'x'. "
    "Correct it, or remove it for the default, 465."
)
MERGED = {"alias": "news", "_ignore_unknown_kwargs": {"port"}}
#: Settings, keywords besides the token, and the beginning of the error's text.
ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"LETTERMINT_PORT": "x"}, {}, f"LETTERMINT_PORT{RULE}"),
    ({"ANYMAIL_LETTERMINT_PORT": "x"}, {}, f"ANYMAIL_LETTERMINT_PORT{RULE}"),
    ({"ANYMAIL": {"LETTERMINT_PORT": "x"}}, {}, f"ANYMAIL['LETTERMINT_PORT']{RULE}"),
    ({}, {"port": "x"}, f"the constructor keyword port{RULE}"),
    ({}, {"port": "x", "alias": "a"}, f"MAILERS['a']['OPTIONS']['port']{RULE}"),
    ({"LETTERMINT_PORT": "x"}, {"alias": "news"}, f"{ALIAS}LETTERMINT_PORT{RULE}"),
    ({}, {"port": "x", **MERGED}, f"{ALIAS}the constructor keyword port{RULE}"),
    (
        {},
        {"port": 26},
        "the constructor keyword port is 26, which is none of 465, 25, ",
    ),
    (
        {},
        {"batch_connections": 11},
        "the constructor keyword batch_connections must not",
    ),
    *(
        (
            {},
            {"host": host, "security": "plaintext"},
            'the constructor keyword security must not be "plaintext" for ',
        )
        for host in ("localhost.evil.example", "128.0.0.1", "::2", "0.0.0.0")
    ),
    ({"ANYMAIL": 7}, {}, "The settings cannot be read (TypeError)."),
    ({"ANYMAIL": "nope"}, {}, "The settings cannot be read (TypeError)."),
    # Unknown names come with a suggestion.
    ({}, {"prot": 1}, UNKNOWN.format("prot", "Did you mean 'port'?")),
    ({}, {"use_tls": 1}, UNKNOWN.format("use_tls", "Did you mean 'security'?")),
    ({}, {"token": None}, UNKNOWN.format("token", "Did you mean 'api_token'?")),
    ({}, {"colour": 1}, UNKNOWN.format("colour", "Known are api_token, host, port, ")),
    (
        {},
        {"prot": 1, "alias": "a"},
        "MAILERS['a']['OPTIONS']['prot'] is not an option.",
    ),
    ({"ANYMAIL": {"LETTERMINT_API_KEY": TOKEN}}, {}, NO_OPTION.format("API_KEY")),
    ({"ANYMAIL": {"LETTERMINT_PASSWORD": TOKEN}}, {}, NO_OPTION.format("PASSWORD")),
]


@pytest.mark.parametrize(("settings", "options", "text"), ERRORS, ids=str)
def test_an_error_names_the_place_the_rule_and_the_remedy(
    settings: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    with override_settings(**settings):
        assert refusal(**options).startswith(text)


def test_the_error_of_a_missing_token_names_the_places_to_set_it() -> None:
    with pytest.raises(AnymailConfigurationError) as raised:
        backend_config({})

    assert str(raised.value) == (
        "api_token is not set. Define LETTERMINT_API_TOKEN in the settings, or "
        "'api_token' in the OPTIONS of the mailer. Copy the project's sending token "
        "from the Lettermint dashboard; if it comes from the environment, see that the "
        "variable is set."
    )


def test_the_error_of_a_mailer_is_of_the_type_that_django_expects() -> None:
    with pytest.raises(AnymailInvalidMailer) as raised:
        config(port="x", alias="default")
    expected = getattr(mail, "InvalidMailer", ImproperlyConfigured)
    assert isinstance(raised.value, expected)

    with pytest.raises(AnymailConfigurationError) as raised_by_keyword:
        config(port="x")
    assert not isinstance(raised_by_keyword.value, AnymailInvalidMailer)


@pytest.mark.parametrize("name", ["password", "host"])
def test_the_queue_refuses_options_of_the_backend_that_sends(name: str) -> None:
    with pytest.raises(AnymailConfigurationError, match=f"{name} is not an option"):
        queue_config({name: "lm_other"})


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


# -- keywords as callers pass them -------------------------------------------------------


@pytest.mark.parametrize("read", [backend_config, queue_config])
@pytest.mark.parametrize("configured", [True, False])
def test_fail_silently_is_any_truth_value_and_a_false_one_is_not_given(
    read: Callable[[dict[str, Any]], Any], *, configured: bool
) -> None:
    with override_settings(
        LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_FAIL_SILENTLY=configured
    ):
        for true in (True, 1, "yes", [0], SimpleLazyObject(lambda: 2)):
            assert read({"fail_silently": true}).fail_silently is True
        for false in (None, False, 0, "", SimpleLazyObject(lambda: 0)):
            assert read({"fail_silently": false}).fail_silently is configured


@override_settings(LETTERMINT_FAIL_SILENTLY=True)
def test_the_fail_silently_of_a_mailer_is_true_or_false_and_overrides_the_setting() -> (
    None
):
    assert config(fail_silently=False, alias="news").fail_silently is False
    given = merged({"api_token": TOKEN}, fail_silently=False)
    assert backend_config(given).fail_silently is False
    for value in ("false", 0, 1, "", None):
        problem = refusal(alias="news", fail_silently=value)
        assert "must be True or False" in problem


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
    path = "django_lettermint.backend.EmailBackend"
    with override_settings(MAILERS={"default": {"BACKEND": path, "OPTIONS": options}}):
        mailer: Any = mail.mailers.default
        for name in (*options, "host"):
            keywords: dict[str, Any] = {name: None}
            backend: Any = mail.get_connection(**keywords)
            assert backend.config == mailer.config


# -- when they are looked up again -------------------------------------------------------


@pytest.mark.parametrize("read", [backend_config, queue_config, webhook_config])
def test_unchanged_settings_make_one_configuration(
    read: Callable[[dict[str, Any]], object],
) -> None:
    with override_settings(LETTERMINT_API_TOKEN=TOKEN):
        one = read({})
        assert read({}) is one
        # What Django passes with every mail.
        passed = {"fail_silently": False, "username": None, "password": None}
        if read is not webhook_config:
            assert read(passed) is one
            assert passed == {}


def test_a_mailer_with_unchanged_options_makes_one_configuration() -> None:
    options = {"api_token": TOKEN, "pool": {"max_size": 2}}
    mailers = {"news": {"OPTIONS": options}, "bulk": {"OPTIONS": options}}
    with override_settings(MAILERS=mailers):
        one = backend_config({"alias": "news", **options})
        assert backend_config({"alias": "news", **options}) is one
        assert one.keywords == ()

        options["api_token"] = "lm_other"
        other = backend_config({"alias": "news", **options})
        assert other.relay.endpoint.token.reveal() == "lm_other"


def test_options_from_code_are_not_kept() -> None:
    one, other = (backend_config({"api_token": TOKEN}) for _ in range(2))

    assert one is not other
    assert one.keywords == ("api_token",)


@override_settings(LETTERMINT_API_TOKEN=TOKEN)
def test_a_changed_setting_holds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host() == "smtp.lettermint.co"
    with override_settings(LETTERMINT_HOST="one"):
        assert host() == "one"
        with override_settings(ANYMAIL={"LETTERMINT_HOST": "two"}):
            assert host() == "two"
        with override_settings(LETTERMINT_HOST="three"):
            del SETTINGS.LETTERMINT_HOST
            assert host() == "smtp.lettermint.co"
        assert host() == "one"
    monkeypatch.setattr(settings, "LETTERMINT_HOST", "assigned", raising=False)
    assert host() == "assigned"
    monkeypatch.undo()
    assert host() == "smtp.lettermint.co"


def test_a_dict_or_list_changed_in_place_holds_at_once() -> None:
    anymail: dict[str, Any] = {
        "LETTERMINT_API_TOKEN": TOKEN,
        "LETTERMINT_POOL": {"max_size": 2},
        "LETTERMINT_SIGNING_SECRET": ["whsec_1"],
    }
    with override_settings(ANYMAIL=anymail):
        assert backend_config({}).relay.endpoint.pool.max_size == 2
        anymail["LETTERMINT_POOL"]["max_size"] = 3
        assert backend_config({}).relay.endpoint.pool.max_size == 3
        anymail["LETTERMINT_HOST"] = "one"
        assert host() == "one"
        assert len(webhook_config().signing_secrets) == 1
        anymail["LETTERMINT_SIGNING_SECRET"].append("whsec_2")
        assert len(webhook_config().signing_secrets) == 2
        anymail["LETTERMINT_HOTS"] = "two"
        with pytest.raises(AnymailConfigurationError, match="LETTERMINT_HOTS"):
            host()


@override_settings(LETTERMINT_API_TOKEN=TOKEN)
def test_the_same_or_an_equal_value_at_another_place_is_read_anew() -> None:
    with override_settings(LETTERMINT_FAIL_SILENTLY=True):
        config = backend_config({})
        assert (config.fail_silently, config.ignore_recipient_status) == (True, False)
    with override_settings(LETTERMINT_IGNORE_RECIPIENT_STATUS=True):
        config = backend_config({})
        assert (config.fail_silently, config.ignore_recipient_status) == (False, True)
    with override_settings(LETTERMINT_RETRIES=1):
        assert backend_config({}).relay.retries == 1
    with (
        override_settings(LETTERMINT_RETRIES=True),
        pytest.raises(AnymailConfigurationError, match="LETTERMINT_RETRIES"),
    ):
        backend_config({})


# -- other objects in their place --------------------------------------------------------


class Holder:
    """Settings that a project computes: it has no `__dir__` and no attributes."""

    def __init__(self, find: Callable[[str], object]) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._find(name)


@contextmanager
def behind_settings(holder: object) -> Iterator[None]:
    """Put an object where projects put theirs: behind `django.conf.settings`."""
    before = SETTINGS._wrapped
    SETTINGS._wrapped = holder
    try:
        yield
    finally:
        SETTINGS._wrapped = before


def holder_of(values: dict[str, Any]) -> Holder:
    inner = SETTINGS._wrapped
    return Holder(lambda name: values[name] if name in values else getattr(inner, name))


@pytest.mark.parametrize(
    "name", ["LETTERMINT_API_TOKEN", "ANYMAIL_LETTERMINT_API_TOKEN"]
)
def test_a_proxy_without_dir_is_asked_at_each_mail(name: str) -> None:
    values: dict[str, Any] = {name: "lm_one", "LETTERMINT_SIGNING_SECRET": "whsec_1"}
    with behind_settings(holder_of(values)):
        assert token() == "lm_one"
        assert len(webhook_config().signing_secrets) == 1
        values |= {name: "lm_two", "LETTERMINT_SIGNING_SECRET": ["whsec_1", "whsec_2"]}
        assert token() == "lm_two"
        assert len(webhook_config().signing_secrets) == 2
        with override_settings(LETTERMINT_HOST="one"):
            assert (token(), host()) == ("lm_two", "one")
            values[name] = "lm_three"
            assert (token(), host()) == ("lm_three", "one")
        del values[name]
        values["ANYMAIL"] = {
            "LETTERMINT_API_TOKEN": "lm_four",
            "SEND_DEFAULTS": {"tag": "four"},
            "IGNORE_UNSUPPORTED_FEATURES": True,
        }
        config = backend_config({})
    assert config.relay.endpoint.token.reveal() == "lm_four"
    assert config.send_defaults == {"tag": "four"}
    assert config.ignore_unsupported_features is True


class Computing(UserSettingsHolder):
    """A holder whose answers its own code finds."""

    def __getattr__(self, name: str) -> Any:
        if name == "LETTERMINT_API_TOKEN":
            return next(self.tokens)
        return super().__getattr__(name)


def computing_module(tokens: Iterator[str]) -> UserSettingsHolder:
    def find(name: str) -> str:
        if name == "LETTERMINT_API_TOKEN":
            return next(tokens)
        raise AttributeError(name)

    module = ModuleType("computing")
    module.__getattr__ = find  # type: ignore[method-assign]
    return UserSettingsHolder(module)


def test_a_holder_or_module_that_computes_is_asked_at_each_mail() -> None:
    holder = Computing(SETTINGS._wrapped)
    holder.tokens = iter(["lm_one", "lm_two"])
    for each in (holder, computing_module(iter(["lm_one", "lm_two"]))):
        with behind_settings(each):
            assert [token(), token()] == ["lm_one", "lm_two"]


def test_a_module_or_any_other_object_may_stand_behind_the_settings() -> None:
    module: Any = ModuleType("settings")
    module.LETTERMINT_API_TOKEN = TOKEN
    for each in (UserSettingsHolder(module), SimpleNamespace(**vars(module))):
        with behind_settings(each):
            assert token() == TOKEN


REPLACED = """
import django.conf

class Computing(django.conf.LazySettings):
    tokens = iter(["lm_one", "lm_two"])

    def __getattr__(self, name):
        if name == "LETTERMINT_API_TOKEN":
            return next(self.tokens)
        return super().__getattr__(name)

django.conf.settings = Computing()
django.conf.settings.configure()

from django_lettermint.conf import backend_config
print(*(backend_config({}).relay.endpoint.token.reveal() for _ in range(2)))
"""


def test_settings_of_another_class_are_asked_at_each_mail() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPLACED], capture_output=True, text=True, check=False
    )

    assert done.stdout.split() == ["lm_one", "lm_two"], done.stderr


def test_a_proxy_that_fails_is_an_error_without_its_values() -> None:
    def find(name: str) -> object:
        if name == "LETTERMINT_HOST":
            raise ConnectionError("no database")
        return TOKEN

    problem = r"^The settings cannot be read \(ConnectionError\)"
    with (
        behind_settings(Holder(find)),
        pytest.raises(AnymailConfigurationError, match=problem) as raised,
    ):
        token()

    assert isinstance(raised.value.__cause__, ConnectionError)
    assert raised.value.__cause__.__traceback__ is None


@override_settings(ANYMAIL=None, LETTERMINT_API_TOKEN=TOKEN)
def test_an_anymail_of_none_is_not_given() -> None:
    assert token() == TOKEN
