"""A tenant's options, laid over those of the backend and of the webhooks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import django
import pytest
from anymail.exceptions import AnymailConfigurationError
from django.core.exceptions import ObjectDoesNotExist
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr

from django_lettermint.conf import (
    Secret,
    backend_config,
    tenant_config,
    tenant_webhook_config,
    webhook_config,
)
from django_lettermint.exceptions import LettermintInvalidMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_lettermint.conf import BackendConfig

TOKEN = "lm_of_the_settings"
OWN = "lm_of_acme"


def config(options: Any, **others: Any) -> BackendConfig:
    """Return the configuration for the tenant "acme", of which `options` are known."""
    keywords = {"api_token": TOKEN, **others}
    keywords["tenants"] = {"acme": options}.__getitem__
    return tenant_config(backend_config(keywords), "acme")


def refusal(options: Any, **others: Any) -> str:
    with pytest.raises(LettermintInvalidMessage) as raised:
        config(options, **others)
    assert TOKEN not in str(raised.value)
    return str(raised.value)


def path_of_tenants(name: str) -> Mapping[str, object]:
    return {"api_token": f"lm_of_{name}"}


def test_a_tenant_has_its_own_token_and_else_what_all_have() -> None:
    found = config({"api_token": OWN}, host="relay.example", timeout=3)

    assert found.relay.endpoint.token == Secret(OWN)
    assert found.relay.endpoint.host == "relay.example"
    assert found.relay.timeout == 3


def test_a_tenants_options_win_over_all_others() -> None:
    own = {"api_token": OWN, "host": "own.example", "send_defaults": {"tag": "own"}}

    found = config(own, host="relay.example", send_defaults={"tag": "all"})

    assert found.relay.endpoint.host == "own.example"
    assert found.send_defaults == {"tag": "own"}


def test_a_password_does_not_win_over_a_tenants_token() -> None:
    assert config({"api_token": OWN}, password=TOKEN).relay.endpoint.token == Secret(
        OWN
    )


def test_two_tenants_share_no_pool_even_with_one_token() -> None:
    usual = backend_config(
        {"api_token": OWN, "tenants": lambda name: {"api_token": OWN}}
    )
    endpoints = {
        usual.relay.endpoint,
        tenant_config(usual, "acme").relay.endpoint,
        tenant_config(usual, "globex").relay.endpoint,
    }
    assert len(endpoints) == 3
    assert {each.tenant for each in endpoints} == {None, "acme", "globex"}


def test_an_option_that_is_none_was_not_given() -> None:
    found = config({"api_token": OWN, "send_defaults": None, "host": None}, host="h.x")

    assert found.relay.endpoint.host == "h.x"


@pytest.mark.parametrize("token", [None, "", " ", 5, b"lm_x", "two words"])
def test_a_tenant_without_a_token_never_gets_that_of_the_settings(
    token: object,
) -> None:
    assert refusal({"api_token": token}).startswith(
        "tenant 'acme': tenants('acme')['api_token'] must be a string of printable"
    )


def test_a_missing_token_is_a_missing_token() -> None:
    assert "tenants('acme')['api_token'] must be" in refusal({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_tokn", OWN),
        ("password", OWN),
        ("tenants", path_of_tenants),
        ("tenant", "acme"),
        ("fail_silently", True),
        ("using", "news"),
        (5, 5),
    ],
)
def test_what_is_no_option_of_a_tenant_is_refused_by_name(
    name: Any, value: object
) -> None:
    text = refusal({"api_token": "lm_1", name: value})

    assert f"tenants('acme')[{name!r}] is not an option. " in text
    assert OWN not in text


def test_a_misspelt_option_is_suggested() -> None:
    assert "Did you mean 'api_token'?" in refusal({"api_token": OWN, "token": "x"})


def test_a_value_that_breaks_a_rule_is_refused_by_name() -> None:
    text = refusal({"api_token": OWN, "port": "465"})

    assert text.startswith("tenant 'acme': tenants('acme')['port'] must be a whole")


@pytest.mark.parametrize("options", [None, [("api_token", OWN)], OWN])
def test_a_resolver_must_return_a_mapping(options: object) -> None:
    text = refusal(options)

    assert text.endswith(
        f"must return a mapping of options, not {type(options).__name__}"
    )
    assert OWN not in text


@pytest.mark.parametrize("error", [LookupError, KeyError, ObjectDoesNotExist])
def test_a_resolver_says_by_an_error_that_it_knows_no_such_tenant(
    error: type[Exception],
) -> None:
    def tenants(name: str) -> Mapping[str, object]:
        raise error(name)

    usual = backend_config({"api_token": TOKEN, "tenants": tenants})
    with pytest.raises(LettermintInvalidMessage, match="does not know it") as raised:
        tenant_config(usual, "acme")
    assert not raised.value.transient
    assert raised.value.__cause__ is None


def test_a_resolver_that_fails_is_named_by_its_error_and_may_work_later() -> None:
    def tenants(name: str) -> Mapping[str, object]:
        options = {"api_token": OWN}
        try:
            raise ConnectionError("the database is away")
        except ConnectionError as error:
            raise RuntimeError(f"no tenants, {len(options)}") from error

    usual = backend_config({"api_token": TOKEN, "tenants": tenants})
    with pytest.raises(
        LettermintInvalidMessage, match=r"now \(RuntimeError\)"
    ) as raised:
        tenant_config(usual, "acme")

    cause = raised.value.__cause__
    assert raised.value.transient
    assert isinstance(cause, RuntimeError)
    # Debug pages show what frames hold: a resolver's hold tokens.
    assert cause.__traceback__ is None
    assert isinstance(cause.__cause__, ConnectionError)
    assert cause.__cause__.__traceback__ is None


class Unhashable(Exception):
    """Compares by value, as an exception that is a dataclass does."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    __hash__ = None  # type: ignore[assignment]


def test_any_exception_is_a_failing_resolver_and_shows_no_frames() -> None:
    def caught(error: Exception) -> Exception:
        with suppress(Exception):
            raise error
        return error

    single, grouped = caught(Unhashable()), caught(ConnectionError())
    for error in (single, ExceptionGroup("two queries", [Unhashable(), grouped])):

        def tenants(name: str, error: Exception = error) -> Mapping[str, object]:
            raise error

        usual = backend_config({"api_token": TOKEN, "tenants": tenants})
        with pytest.raises(LettermintInvalidMessage, match="looked up now") as raised:
            tenant_config(usual, "acme")
        assert raised.value.transient
        assert raised.value.__cause__ is error
        assert error.__traceback__ is None
    assert grouped.__traceback__ is None


def test_a_lazy_value_that_fails_is_a_failing_resolver() -> None:
    def fail() -> str:
        raise ConnectionError

    assert "(ConnectionError)" in refusal({"api_token": SimpleLazyObject(fail)})


def test_lazy_values_are_resolved() -> None:
    options = SimpleLazyObject(lambda: {"api_token": SimpleLazyObject(lambda: OWN)})

    assert config(options).relay.endpoint.token == Secret(OWN)
    lazy_dict = lazy(lambda: {"api_token": lazystr(OWN)}, dict)()
    assert config(lazy_dict).relay.endpoint.token == Secret(OWN)


def test_without_a_resolver_there_are_no_tenants() -> None:
    with pytest.raises(
        LettermintInvalidMessage, match=r"option `tenants`.* is not set"
    ):
        tenant_config(backend_config({"api_token": TOKEN}), "acme")


@pytest.mark.parametrize(
    "name", ["", " acme", "acme\n", "a\x00b", "a" * 256, "\ud800", 5, b"acme", object()]
)
def test_what_is_no_name_reaches_no_resolver(name: object) -> None:
    def tenants(name: str) -> Mapping[str, object]:
        raise AssertionError

    usual = backend_config({"api_token": TOKEN, "tenants": tenants})
    with pytest.raises(LettermintInvalidMessage, match=r"^tenant: .* cannot be sent"):
        tenant_config(usual, name)


@pytest.mark.parametrize("name", ["acme", "Müller & Söhne", "a" * 255, "🏢", "a/b:c"])
def test_a_name_may_have_any_printable_characters(name: str) -> None:
    usual = backend_config({"api_token": TOKEN, "tenants": path_of_tenants})

    with pytest.raises(LettermintInvalidMessage) as raised:
        tenant_config(usual, f"{name}\n")
    assert "tenant: " in str(raised.value)
    known = backend_config(
        {"api_token": TOKEN, "tenants": lambda _: {"api_token": OWN}}
    )
    assert tenant_config(known, name).relay.endpoint.tenant == name


def test_a_resolver_may_be_named_by_its_path() -> None:
    path = f"{__name__}.path_of_tenants"
    with override_settings(LETTERMINT_API_TOKEN=TOKEN, LETTERMINT_TENANTS=path):
        found = tenant_config(backend_config({}), "acme")

    assert found.relay.endpoint.token == Secret("lm_of_acme")


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
def test_a_resolver_that_is_none_is_an_error_of_the_settings(
    path: object, problem: str
) -> None:
    with pytest.raises(AnymailConfigurationError) as raised:
        backend_config({"api_token": TOKEN, "tenants": path})
    assert "the constructor keyword tenants must be " in str(raised.value)
    assert problem in str(raised.value)
    assert OWN not in str(raised.value)


@pytest.mark.parametrize("name", ["", "a\nb", 5])
def test_the_option_tenant_must_be_a_name(name: object) -> None:
    with pytest.raises(AnymailConfigurationError, match="tenant must be a name: 1 to"):
        backend_config({"api_token": TOKEN, "tenant": name})


def test_a_signed_header_is_no_default() -> None:
    headers = {"extra_headers": {"x-lettermint-tenant": "acme"}}
    with pytest.raises(AnymailConfigurationError, match="the option `tenant`"):
        backend_config({"api_token": TOKEN, "send_defaults": headers})


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS are new in Django 6.1")
def test_an_error_of_a_tenant_names_the_mailer() -> None:
    usual = backend_config(
        {"alias": "news", "api_token": TOKEN, "tenants": lambda name: {}}
    )
    with pytest.raises(LettermintInvalidMessage, match=r"MAILERS\['news'\]: tenants\("):
        tenant_config(usual, "acme")


# -- webhooks ---------------------------------------------------------------------------


def secrets(**options: Any) -> tuple[Secret, ...]:
    tenants = {"acme": options}.__getitem__
    with override_settings(
        LETTERMINT_TENANTS=tenants, LETTERMINT_SIGNING_SECRET="whsec_settings"
    ):
        return tenant_webhook_config(webhook_config(), "acme").signing_secrets


def test_a_tenants_webhooks_have_its_own_secret() -> None:
    assert secrets(signing_secret="whsec_acme") == (Secret("whsec_acme"),)
    assert secrets(signing_secret=["whsec_1", "whsec_2"]) == (
        Secret("whsec_1"),
        Secret("whsec_2"),
    )


@pytest.mark.parametrize(
    "options", [{}, {"signing_secret": None}, {"signing_secret": ""}]
)
def test_a_tenant_without_a_secret_never_gets_that_of_the_settings(
    options: dict[str, Any],
) -> None:
    assert secrets(**options) == ()


def test_webhooks_need_no_token() -> None:
    assert secrets(api_token=None, signing_secret="whsec_acme")


def test_a_tenant_may_have_a_correlation_key_of_its_own() -> None:
    tenants = {"acme": {"correlation_key": "id"}}.__getitem__
    with override_settings(LETTERMINT_TENANTS=tenants):
        assert tenant_webhook_config(webhook_config(), "acme").correlation_key == "id"
