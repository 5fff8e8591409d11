"""A tenant's options, laid over those of the backend and of the webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import django
import pytest
from anymail.exceptions import AnymailConfigurationError
from django.core.exceptions import ObjectDoesNotExist
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr

from django_lettermint.conf import (
    BackendConfig,
    Secret,
    backend_config,
    tenant_config,
    tenant_webhook_config,
    webhook_config,
)
from django_lettermint.exceptions import LettermintInvalidMessage

TOKEN = "lm_of_the_settings"
OWN = "lm_of_acme"


def usual(tenants: object, **others: Any) -> BackendConfig:
    return backend_config({"api_token": TOKEN, "tenants": tenants, **others})


def config(options: Any, **others: Any) -> BackendConfig:
    """Return the configuration for the tenant "acme", of which `options` are known."""
    return tenant_config(usual({"acme": options}.__getitem__, **others), "acme")


def refused(config: BackendConfig, name: object = "acme") -> LettermintInvalidMessage:
    with pytest.raises(LettermintInvalidMessage) as raised:
        tenant_config(config, name)
    assert TOKEN not in str(raised.value)
    assert OWN not in str(raised.value)
    return raised.value


def path_of_tenants(name: str) -> Mapping[str, object]:
    return {"api_token": f"lm_of_{name}"}


def test_a_tenants_options_win_over_all_others() -> None:
    own = {"api_token": OWN, "host": "own.example", "timeout": None}
    others = {"password": TOKEN, "host": "all.example", "timeout": 3}
    defaults = {"send_defaults": {"tag": "all"}}

    found = config(own | {"send_defaults": {"tag": "own"}}, **others, **defaults)

    assert found.relay.endpoint.token == Secret(OWN)
    assert found.relay.endpoint.host == "own.example"
    assert found.relay.timeout == 3  # its None was not given
    assert found.send_defaults == {"tag": "own"}
    assert config(own, **defaults).send_defaults == {"tag": "all"}


def test_lazy_values_are_resolved() -> None:
    lazy_dict = lazy(lambda: {"api_token": lazystr(OWN)}, dict)()
    options = SimpleLazyObject(lambda: {"api_token": SimpleLazyObject(lambda: OWN)})
    for form in (lazy_dict, options):
        assert config(form).relay.endpoint.token == Secret(OWN)


# -- what is refused ---------------------------------------------------------------------


NO_TOKEN = "tenants('acme')['api_token'] must be a string of printable"
NO_OPTION = "tenants('acme')[{!r}] is not an option. "
NO_MAPPING = "`tenants` must return a mapping of options, not "
#: What a resolver returns, and what is said of it.
REFUSED: list[tuple[Any, str]] = [
    # It never gets the token of the settings.
    ({}, NO_TOKEN),
    *(
        ({"api_token": odd}, NO_TOKEN)
        for odd in (None, "", " ", 5, b"lm_x", "two words")
    ),
    ({"api_token": OWN, "port": "465"}, "tenants('acme')['port'] must be a whole"),
    (
        {"api_token": OWN, "api_tokn": OWN},
        NO_OPTION.format("api_tokn") + "Did you mean",
    ),
    (
        {"api_token": OWN, "password": OWN},
        NO_OPTION.format("password") + "Did you mean",
    ),
    *(
        ({"api_token": OWN, name: value}, NO_OPTION.format(name))
        for name, value in [("tenants", str), ("tenant", "acme"), (5, 5)]
    ),
    ({"api_token": OWN, "fail_silently": True}, NO_OPTION.format("fail_silently")),
    (None, NO_MAPPING + "NoneType"),
    ([("api_token", OWN)], NO_MAPPING + "list"),
    (OWN, NO_MAPPING + "str"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=str)
def test_other_options_than_those_of_a_tenant_are_refused_by_name(
    options: Any, text: str
) -> None:
    error = refused(usual({"acme": options}.__getitem__))

    assert str(error).startswith(f"tenant 'acme': {text}")


def test_without_a_resolver_there_are_no_tenants() -> None:
    assert "the option `tenants`, which finds its" in str(refused(usual(None)))


@pytest.mark.parametrize("kind", [LookupError, KeyError, ObjectDoesNotExist])
def test_a_resolver_says_by_an_error_that_it_knows_no_such_tenant(
    kind: type[Exception],
) -> None:
    def tenants(name: str) -> Mapping[str, object]:
        raise kind(name)

    error = refused(usual(tenants))

    assert str(error) == (
        "tenant 'acme': the function in the option `tenants` does not know it"
    )
    assert not error.transient
    assert error.__cause__ is None


class Unhashable(Exception):
    """Compares by value, as an exception that is a dataclass does."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    __hash__ = None  # type: ignore[assignment] # as a dataclass has it


def raise_and_catch(error: Exception) -> Exception:
    with suppress(Exception):
        raise error
    return error


@pytest.mark.parametrize("cause", [None, RuntimeError("the cause")])
def test_any_other_error_of_a_resolver_is_transient_and_shows_no_frames(
    cause: Exception | None,
) -> None:
    grouped = raise_and_catch(ConnectionError())
    group = ExceptionGroup("two queries", [Unhashable(), grouped])
    for error in (Unhashable(), ConnectionError(OWN), group):
        context = raise_and_catch(LookupError())

        def tenants(
            name: str, error: Exception = error, context: Exception = context
        ) -> Mapping[str, object]:
            try:
                raise context
            except LookupError:
                raise error from cause

        refusing = refused(usual(tenants))

        kind = type(error).__name__
        assert str(refusing) == f"tenant 'acme' cannot be looked up now ({kind})"
        assert refusing.transient
        assert refusing.__cause__ is error
        assert error.__context__ is context
        for each in (error, context, cause or error):
            assert each.__traceback__ is None
    assert grouped.__traceback__ is None


def test_a_lazy_value_that_fails_is_a_failing_resolver() -> None:
    def fail() -> str:
        raise ConnectionError

    for options, problem in (
        ({"api_token": SimpleLazyObject(fail)}, " cannot be looked up now ("),
        (
            {"api_token": OWN, "pool": {"timeout": SimpleLazyObject(fail)}},
            ": tenants('acme')['pool'] cannot be read (",
        ),
    ):
        error = refused(usual({"acme": options}.__getitem__))
        assert str(error).startswith(f"tenant 'acme'{problem}ConnectionError)")
        assert isinstance(error.__cause__, ConnectionError)


@pytest.mark.parametrize("name", ["acme", "Müller & Söhne", "a" * 255, "🏢", "a/b:c"])
def test_a_name_may_have_any_printable_characters(name: str) -> None:
    known = usual(lambda _: {"api_token": OWN})

    assert tenant_config(known, name).relay.endpoint.tenant == name


@pytest.mark.parametrize(
    "name", ["", " acme", "acme\n", "a\x00b", "a" * 256, "\ud800", 5, b"acme", object()]
)
def test_an_invalid_name_reaches_no_resolver(name: object) -> None:
    def tenants(name: str) -> Mapping[str, object]:
        raise AssertionError

    assert str(refused(usual(tenants), name)).startswith("tenant: ")


def test_a_resolver_may_be_named_by_its_path() -> None:
    found = tenant_config(usual(f"{__name__}.path_of_tenants"), "acme")

    assert found.relay.endpoint.token == Secret(OWN)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere.tenants", "'nowhere.tenants' cannot (ModuleNotFoundError: "),
        (f"{__name__}.nothing", "cannot (ImportError: "),
        ("tenants", "cannot (ImportError: "),
        (f"{__name__}.TOKEN", "must be a function or the path of one, not str."),
        (5, "must be a function or the path of one, not int."),
        ({"acme": {"api_token": OWN}}, "not dict; a dict's look-up is one: "),
    ],
)
def test_a_resolver_that_is_no_function_is_an_error_of_the_settings(
    path: object, problem: str
) -> None:
    with pytest.raises(AnymailConfigurationError) as raised:
        usual(path)
    assert "the constructor keyword tenants must be " in str(raised.value)
    assert problem in str(raised.value)
    assert OWN not in str(raised.value)


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS are new in Django 6.1")
def test_an_error_of_a_tenant_names_the_mailer() -> None:
    error = refused(usual(lambda name: {}, alias="news"))

    assert "MAILERS['news']: tenants(" in str(error)


# -- webhooks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "secrets"),
    [
        ({"signing_secret": "whsec_1"}, ["whsec_1"]),
        ({"signing_secret": ["whsec_1", "whsec_2"]}, ["whsec_1", "whsec_2"]),
        ({"signing_secret": "whsec_1", "api_token": None}, ["whsec_1"]),
        # Never that of the settings.
        ({}, []),
        ({"signing_secret": None}, []),
        ({"signing_secret": ""}, []),
    ],
)
def test_a_tenants_webhooks_have_its_own_secret(
    options: dict[str, Any], secrets: list[str]
) -> None:
    tenants = {"acme": {**options, "correlation_key": "id"}}.__getitem__
    with override_settings(
        LETTERMINT_TENANTS=tenants, LETTERMINT_SIGNING_SECRET="whsec_settings"
    ):
        found = tenant_webhook_config(webhook_config(), "acme")

    assert found.signing_secrets == tuple(map(Secret, secrets))
    assert found.correlation_key == "id"
