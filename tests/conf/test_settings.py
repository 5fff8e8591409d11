"""When settings are looked up again, and what other objects in their place may do."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.conf import UserSettingsHolder, settings
from django.test import override_settings

from django_lettermint.conf import backend_config, queue_config, webhook_config

from .reading import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: For type checkers, which know certain attributes of the settings only.
SETTINGS: Any = settings


def host() -> str:
    return backend_config({}).relay.endpoint.host


def token() -> str:
    return backend_config({}).relay.endpoint.token.reveal()


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
    assert host() == "smtp.lettermint.co"
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


def test_the_same_value_under_another_name_makes_another_configuration() -> None:
    def flags(**settings: Any) -> tuple[bool, bool]:
        with override_settings(LETTERMINT_API_TOKEN=TOKEN, **settings):
            config = backend_config({})
        return config.fail_silently, config.ignore_recipient_status

    assert flags(LETTERMINT_FAIL_SILENTLY=True) == (True, False)
    assert flags(LETTERMINT_IGNORE_RECIPIENT_STATUS=True) == (False, True)


def test_an_equal_value_of_another_type_is_validated_again() -> None:
    with override_settings(LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_RETRIES=1):
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

    def find(name: str) -> object:
        return values[name] if name in values else getattr(inner, name)

    return Holder(find)


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


def test_a_proxys_anymail_is_asked_at_each_mail() -> None:
    values: dict[str, Any] = {"ANYMAIL": {"LETTERMINT_API_TOKEN": "lm_one"}}
    with behind_settings(holder_of(values)):
        assert token() == "lm_one"
        values["ANYMAIL"] = {
            "LETTERMINT_API_TOKEN": "lm_two",
            "SEND_DEFAULTS": {"tag": "two"},
            "IGNORE_UNSUPPORTED_FEATURES": True,
        }
        config = backend_config({})
    assert config.relay.endpoint.token.reveal() == "lm_two"
    assert config.send_defaults == {"tag": "two"}
    assert config.ignore_unsupported_features is True


def test_each_thread_gets_what_a_proxy_answers_in_it() -> None:
    tenant = threading.local()
    barrier = threading.Barrier(4)

    def find(name: str) -> object:
        if name == "LETTERMINT_API_TOKEN":
            return f"lm_{tenant.name}"
        raise AttributeError(name)

    def tokens(name: str) -> set[str]:
        tenant.name = name
        barrier.wait(10)
        return {token() for _ in range(50)}

    with behind_settings(Holder(find)), ThreadPoolExecutor(4) as threads:
        found = list(threads.map(tokens, "abcd"))

    assert found == [{"lm_a"}, {"lm_b"}, {"lm_c"}, {"lm_d"}]


def test_a_subclass_of_djangos_holder_is_asked_at_each_mail() -> None:
    class Computing(UserSettingsHolder):
        tokens = iter(["lm_one", "lm_two"])

        def __getattr__(self, name: str) -> Any:
            if name == "LETTERMINT_API_TOKEN":
                return next(self.tokens)
            return super().__getattr__(name)

    with behind_settings(Computing(SETTINGS._wrapped)):
        assert [token(), token()] == ["lm_one", "lm_two"]


def test_a_module_that_computes_its_names_is_asked_at_each_mail() -> None:
    module = ModuleType("computing")
    tokens = iter(["lm_one", "lm_two"])

    def find(name: str) -> object:
        if name == "LETTERMINT_API_TOKEN":
            return next(tokens)
        raise AttributeError(name)

    module.__getattr__ = find  # type: ignore[method-assign]
    with behind_settings(UserSettingsHolder(module)):
        assert [token(), token()] == ["lm_one", "lm_two"]


def test_any_object_may_stand_behind_the_settings() -> None:
    with behind_settings(SimpleNamespace(LETTERMINT_API_TOKEN=TOKEN)):
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


@pytest.mark.parametrize("anymail", [7, ["LETTERMINT_API_TOKEN"], "nope"])
def test_an_anymail_that_is_no_dict_is_an_error(anymail: object) -> None:
    with (
        override_settings(ANYMAIL=anymail),
        pytest.raises(AnymailConfigurationError) as raised,
    ):
        token()

    assert str(raised.value.__cause__) == "ANYMAIL must be a dict"


@override_settings(ANYMAIL=None, LETTERMINT_API_TOKEN=TOKEN)
def test_an_anymail_of_none_is_not_given() -> None:
    assert token() == TOKEN
