"""The rule of every option, in settings, in keywords and behind lazy objects."""

from __future__ import annotations

import math
import sys
from email.headerregistry import Address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.conf import (
    OPTIONS,
    POOL_OPTIONS,
    QUEUE_OPTIONS,
    WEBHOOK_OPTIONS,
    PoolConfig,
    Secret,
    backend_config,
    queue_config,
    webhook_config,
)
from django_lettermint.conf.validators import InvalidOption, host
from tests.certificates import ca_file as pem_file

from .reading import TOKEN, config, merged, refusal, relay

NO_NUMBERS: list[object] = [None, True, "10", [], 10j, math.nan, math.inf, 10**400]
TIMES = (
    "timeout final_reply_timeout deadline pool.timeout pool.max_idle pool.max_lifetime"
)
FLAGS = (
    "pipelining chunking fail_silently queue.on_commit "
    "ignore_recipient_status ignore_unsupported_features debug_api_requests"
)
TEXT = "a non-empty string of printable ASCII without spaces"
NO_WORDS: list[object] = ["", (), "a b", "nul\0", "ü", 1]
SECURITIES = "one of 'tls', 'starttls', 'plaintext'"
MECHANISMS = "one of 'PLAIN', 'LOGIN', 'CRAM-MD5'"


def tenants(name: str) -> dict[str, object]:
    return {}


#: Options with one rule, the rule, values that break it, and values that follow it, the
#: first of which is no default.
RULES: list[tuple[str, str, list[object], list[object]]] = [
    (
        TIMES,
        "a number of seconds above 0 and at most 1000000 (it cannot be off)",
        [*NO_NUMBERS, 0, 0.0, -1, 1_000_001],
        [0.25, 1, 1_000_000],
    ),
    (
        "pool.ping_after",
        "a number of seconds from 0 to 1000000, or None",
        [True, "1", -1, 1_000_001, math.nan],
        [0.5, None, 0, 1_000_000],
    ),
    (
        "queue.give_up_after",
        "a number of seconds above 0 and at most 86400,",
        [None, 0, 86401, True, "60"],
        [60, 86400],
    ),
    (
        "port",
        "a whole number, from 1 to 65535",
        [None, True, False, "465", 465.0, 0, -1, 65536],
        [587, 1, 65535],
    ),
    (
        "retries pool.max_waiting pool.max_messages",
        "a whole number, 0 or more",
        [None, True, 1.0, "1", -1],
        [3, 0],
    ),
    (
        "pool.max_size queue.max_bytes",
        "a whole number, 1 or more",
        [None, True, "4", 0],
        [3, 1],
    ),
    ("batch_connections", "a whole number, 1 or more", [True, "4", 0], [2, 1, None]),
    (
        "queue.priority",
        "a whole number, from -100 to 100",
        [None, True, "1", -101, 101],
        [-100, 100],
    ),
    (
        FLAGS,
        "True or False",
        [None, 0, 1, "true", "False", ""],
        [True, False],
    ),
    ("idempotency", "True or False", [0, 1, "true"], [False, None, True]),
    (
        "api_token",
        "a string of printable ASCII",
        [None, "", " ", b"token", 7, "to ken", "token\n", "tokeñ", "\x00", ["t"]],
        [Secret("lm_other")],
    ),
    ("username", TEXT, [None, *NO_WORDS], ["shop"]),
    ("queue.task_backend queue.queue_name", TEXT, [None, *NO_WORDS], ["mail"]),
    ("queue.using", TEXT, NO_WORDS, ["relay", None]),
    ("security", SECURITIES, ["ssl", True, "", 1], ["starttls", None]),
    ("auth_mechanism", MECHANISMS, ["", "XOAUTH2", 1, ["PLAIN"]], ["LOGIN", None]),
    (
        "ca_file",
        "the path of an existing file",
        ["", "missing.pem", "a\0b", Path("/"), b"x", 7],
        [pem_file(), None],
    ),
    (
        "correlation_key",
        "a metadata key",
        ["", "order:id", "order id", "é", "a\n", 1, False],
        ["id", None],
    ),
    ("send_defaults", "a dict", [None, "tag", [("tag", "a")]], [{"tag": "a"}]),
    ("tenants", "a function", [5], [tenants, None]),
    ("tenant", "a name: ", ["", 5, "acme\n", "a" * 256], ["acme", None]),
    ("pool", "True, False or a dict", [None, 1, "true", ["max_size"]], []),
    (
        "host",
        "a host name or IP address",
        [
            *(None, "", b"localhost", "smtp lettermint.co", "smtp.lettermint.co\r\n"),
            *("smtp.lettermint.co:465", "smtps://smtp.lettermint.co"),
            *("smtp..lettermint.co", "smtp.lettermint.co.", "[::1]", "a" * 64),
            *(".".join(["a" * 49] * 5 + ["aaaa"]), "☃\u200b\u2028", "-ü.example"),
        ],
        [
            *("relay_1", "10.0.0.1", "::1", "fe80::1%eth0", "a" * 63),
            ".".join(["a" * 49] * 5 + ["aaa"]),
        ],
    ),
    (
        "local_hostname",
        "a host name (letters",
        [
            *("", 7, "my_host", "-host", "host-", "a..b", "host\r\nMAIL FROM:<x>"),
            *("bücher.example", "[::1]", "[IPv6:127.0.0.1]", "[IPv6:fe80::1%eth0]"),
            *("[127.0.0.1", "127.0.0.1]", "[host]", "a." * 127 + "aa"),
        ],
        [
            *("mx-1.example.com", "host", "[127.0.0.1]", "[IPv6:::1]", None),
            "a." * 127 + "a",
        ],
    ),
    ("idna_encoder", '"idna2008"', ["nope", "django.nope", "django.VERSION", 7], []),
]
REFUSED = [
    pytest.param(name, rule, value, id=f"{name}-{number}")
    for names, rule, values, _ in RULES
    for name in names.split()
    for number, value in enumerate(values)
]
TAKEN = [
    (name, value)
    for names, _, _, values in RULES
    for name in names.split()
    for value in values
]
#: Of each option, a value that is not its default.
OTHER = {
    name: values[0] for names, _, _, values in RULES if values for name in names.split()
}
OF_THE_BACKEND = [name for name in OTHER if "." not in name]
OF_THE_QUEUE = [name for name in OTHER if name.startswith("queue.")]


def settings_of(name: str, value: object) -> dict[str, Any]:
    """Return the settings that have a value; an option of the pool is in a dict."""
    kind, _, option = name.rpartition(".")
    if kind == "pool":
        return {"LETTERMINT_POOL": {option: value}}
    return {f"LETTERMINT_{option.upper()}": value}


def read(name: str) -> object:
    """Return what an option of the settings is read into."""
    kind, _, option = name.rpartition(".")
    if kind == "queue":
        return getattr(queue_config({}), option)
    config = backend_config({})
    if option == "api_token":
        return config.relay.endpoint.token
    endpoint = config.relay.endpoint
    holders = [endpoint.pool] if kind == "pool" else [config, config.relay, endpoint]
    return next(getattr(each, option) for each in holders if hasattr(each, option))


@pytest.fixture(autouse=True)
def _a_token_is_set() -> Any:
    with override_settings(LETTERMINT_API_TOKEN=TOKEN):
        yield


def test_every_option_has_a_rule() -> None:
    ruled = {name for names, *_ in RULES for name in names.split()}

    assert OPTIONS.keys() - ruled == set(WEBHOOK_OPTIONS)
    assert {f"pool.{name}" for name in POOL_OPTIONS} <= ruled
    assert {f"queue.{name}" for name in QUEUE_OPTIONS} <= ruled


@pytest.mark.parametrize(("name", "rule", "value"), REFUSED)
def test_a_setting_that_breaks_the_rule_of_its_option_is_refused(
    name: str, rule: str, value: object
) -> None:
    kind, _, option = name.rpartition(".")
    place = f"LETTERMINT_{option.upper()}"
    if kind == "pool":
        place = f"LETTERMINT_POOL[{option!r}]"
    with (
        override_settings(**settings_of(name, value)),
        pytest.raises(AnymailConfigurationError) as raised,
    ):
        read(name)

    problem = str(raised.value)
    assert problem.startswith(f"{place} must be {rule}")
    assert name in ("api_token", "tenants") or repr(value)[:5] in problem


@pytest.mark.parametrize(("name", "value"), TAKEN)
def test_a_setting_that_follows_the_rule_of_its_option_is_taken(
    name: str, value: object
) -> None:
    others = {"LETTERMINT_SECURITY": "tls", "LETTERMINT_HOST": "localhost"}
    with override_settings(**{**others, **settings_of(name, value)}):
        if (name, value) in (("security", None), ("idempotency", None)):
            assert read(name) == {"security": "tls", "idempotency": False}[name]
        else:
            assert read(name) == value


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("host", "smtp.bücher.example", "smtp.xn--bcher-kva.example"),
        ("host", "smtp.BÜCHER.example", "smtp.xn--bcher-kva.example"),
        ("auth_mechanism", "Cram-Md5", "CRAM-MD5"),
        ("local_hostname", "[ipv6:::1]", "[IPv6:::1]"),
    ],
)
def test_a_value_is_returned_in_its_standard_form(
    name: str, value: str, meant: str
) -> None:
    assert getattr(relay(**{name: value}).endpoint, name) == meant


@given(st.text())
def test_any_text_is_a_host_that_sockets_can_take_or_refused(text: str) -> None:
    try:
        name = host(text)
    except InvalidOption:
        return
    assert name.isascii()
    assert not set(name) & set(" \r\n\t\0")
    assert name.encode("idna")


@pytest.mark.parametrize("content", ["", "no certificate\n", "-----BEGIN CERTIFICATE"])
def test_a_ca_file_holds_certificates(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(content)
    assert "ca_file must be the path of an existing file" in refusal(ca_file=path)

    # A changed file is read again.
    path.write_bytes(Path(pem_file()).read_bytes())
    assert relay(ca_file=path).endpoint.ca_file == str(path)
    path.write_text(content)
    assert "ca_file must be the path of an existing file" in refusal(ca_file=path)


# -- None --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in OF_THE_BACKEND if name != "api_token"),
        # As by a subclass that repeats the signature of Django's backend.
        *("password", "use_tls", "use_ssl", "ssl_certfile", "ssl_keyfile"),
    ],
)
def test_a_keyword_of_none_uses_the_configured_value(name: str) -> None:
    options: dict[str, Any] = {"api_token": TOKEN}
    if name in OTHER:
        options[name] = OTHER[name]
    with override_settings(**settings_of(name, OTHER.get(name))):
        assert backend_config({name: None}) is backend_config({})
    with override_settings(MAILERS={"default": {"OPTIONS": options}}):
        expected = backend_config(merged(options))
        assert backend_config(merged(options, **{name: None})) is expected


@pytest.mark.parametrize("name", [*OF_THE_QUEUE, "host", "password", "use_tls"])
def test_a_queue_keyword_of_none_uses_the_configured_value(name: str) -> None:
    with override_settings(**settings_of(name, OTHER.get(name))):
        keyword = name.removeprefix("queue.")
        assert queue_config({keyword: None}) is queue_config({})


# -- lazy values -------------------------------------------------------------------------


def lazily(value: Any) -> list[object]:
    """Return a value in each of Django's lazy forms."""
    forms: list[object] = [
        SimpleLazyObject(lambda: value),
        lazy(lambda: value, type(value))(),
        SimpleLazyObject(lambda: SimpleLazyObject(lambda: value)),
    ]
    return [*forms, lazystr(value)] if isinstance(value, str) else forms


@pytest.mark.parametrize("name", OTHER)
def test_a_lazy_value_is_resolved_wherever_it_is(name: str) -> None:
    for form in lazily(OTHER[name]):
        settings = settings_of(name, form)
        anymail = {"LETTERMINT_API_TOKEN": TOKEN, **settings}
        for place in (settings, *({"ANYMAIL": each} for each in lazily(anymail))):
            with override_settings(**place):
                assert read(name) == OTHER[name]
    if name in OF_THE_BACKEND:
        expected = config(**{name: OTHER[name]}).relay
        for form in lazily(OTHER[name]):
            assert config(**{name: form}).relay == expected
            assert config(**{name: form}, alias="news").relay == expected


def test_a_lazy_none_is_treated_as_none() -> None:
    with override_settings(LETTERMINT_TIMEOUT=3):
        assert relay(timeout=SimpleLazyObject(lambda: None)).timeout == 3


def test_a_lazy_text_is_asked_at_each_mail() -> None:
    hosts = iter(["one", "two"])
    with override_settings(LETTERMINT_HOST=lazy(lambda: next(hosts), str)()):
        assert [read("host"), read("host")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "value"), [("port", "465"), ("host", ""), ("pool", 7)]
)
def test_a_wrong_lazy_value_is_named_by_its_option(name: str, value: object) -> None:
    for form in lazily(value):
        with override_settings(**settings_of(name, form)):
            problem = refusal()
        assert problem.startswith(f"LETTERMINT_{name.upper()} must be ")
        assert repr(value) in problem


def sealed() -> str:
    raise OSError("the vault is sealed")


@pytest.mark.parametrize("name", ["api_token", "port", "signing_secret"])
def test_a_lazy_value_that_fails_is_named_by_its_option(name: str) -> None:
    options = {"api_token": TOKEN, "port": 587}
    for form in (SimpleLazyObject(sealed), lazy(sealed, str)()):
        for keywords in ({**options, name: form}, merged(options, **{name: form})):
            with (
                override_settings(MAILERS={"default": {"OPTIONS": options}}),
                pytest.raises(AnymailConfigurationError) as raised,
            ):
                backend_config(keywords)
            text = f"the constructor keyword {name} cannot be read (OSError)."
            assert str(raised.value).endswith(text)
            assert str(raised.value.__cause__) == "the vault is sealed"


# -- the pool ----------------------------------------------------------------------------


def test_the_pool_is_on_or_off_or_described_by_a_dict() -> None:
    endpoint = relay(pool={"max_size": 8, "ping_after": 0}).endpoint
    assert (endpoint.pooled, endpoint.pool) == (
        True,
        PoolConfig(max_size=8, ping_after=0),
    )
    for pooled in (True, False):
        endpoint = relay(pool=pooled).endpoint
        assert (endpoint.pooled, endpoint.pool) == (pooled, PoolConfig())


def test_a_refused_key_of_the_pool_comes_with_a_suggestion_or_its_own_default() -> None:
    problem = "pool['maxsize'] is not an option here. Did you mean 'max_size'?"

    assert problem in refusal(pool={"maxsize": 4})
    assert "Known are max_size, timeout, max_waiting" in refusal(pool={7: 4})
    assert "remove it for the default, 45.0." in refusal(pool={"max_idle": "45"})


# -- Anymail's encoder of domains --------------------------------------------------------


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
def test_the_idna_encoder_has_the_forms_of_anymail(
    encoder: object, encoded: str
) -> None:
    with override_settings(ANYMAIL={"IDNA_ENCODER": encoder}):
        assert config().idna_encoder("straße.example") == encoded


def test_the_idna_encoder_uts46_needs_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = ModuleType("uts46")
    package.encode = str.encode  # type: ignore[attr-defined] # a stand-in
    monkeypatch.setitem(sys.modules, "uts46", package)
    assert config(idna_encoder="uts46").idna_encoder("a.example") == "a.example"

    monkeypatch.setitem(sys.modules, "uts46", None)
    assert "keyword idna_encoder must be" in refusal(idna_encoder="uts46")


# -- send_defaults -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "defaults",
    [
        {"route": "news", "tag": "a", "metadata": {"k": 1}, "reply_to": ["a@b.c"]},
        {"tag": gettext_lazy("a"), "metadata": {"k": gettext_lazy("v")}},
        {"subject": gettext_lazy("Hi"), "envelope_sender": Address("", "a", "b.c")},
        {"cc": ("a@b.c",), "tags": ["a"], "extra_headers": {"X-A": 1}},
        {"tags": ["several", "if unsupported features are ignored"]},
        dict.fromkeys(["tag", "tags", "metadata", "cc", "extra_headers", "subject"]),
        {"send_at": 1_900_000_000},
    ],
)
def test_send_defaults_are_a_copy_of_message_attributes(
    defaults: dict[str, Any],
) -> None:
    found = config(send_defaults=defaults).send_defaults

    assert found == defaults
    assert found is not defaults


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("idempotency_key", "x", "is not an option here"),
        (7, "x", "is not an option here"),
        ("route", "a.b", "breaks a rule. … a route slug has at most 255 ASCII letters"),
        ("tag", 5, "breaks a rule. … it must be a str"),
        ("tags", ["a.b"], "breaks a rule. … a tag has at most 255 ASCII letters"),
        ("metadata", {"k": None}, "breaks a rule. … use str, int, float"),
        ("esp_extra", {"route": "a.b"}, "breaks a rule. … a route slug has"),
        ("esp_extra", {"idempotency_key": "k"}, "breaks a rule. … drop every message"),
        ("extra_headers", {"X A": "b"}, "breaks a rule. … printable ASCII characters"),
        ("extra_headers", {"Idempotency-Key": "k"}, "breaks a rule. … drop every"),
        (
            "extra_headers",
            {"x-lettermint-tenant": "a"},
            "breaks a rule. … the option `",
        ),
        ("extra_headers", [("X-A", "b")], "must be a dict, not [('X-A', 'b')]"),
        ("cc", "a@b.c", "must be a list, not 'a@b.c'"),
        ("attachments", b"data", "must be a list, not b'data'"),
        ("envelope_sender", ["a@b.c"], "must be a string, not ['a@b.c']"),
    ],
)
def test_a_send_default_that_no_message_could_have_is_refused(
    key: object, value: object, problem: str
) -> None:
    with override_settings(ANYMAIL={"LETTERMINT_SEND_DEFAULTS": {key: value}}):
        text = refusal()

    start, _, rule = problem.partition(" … ")
    assert text.startswith(f"ANYMAIL['LETTERMINT_SEND_DEFAULTS'][{key!r}] {start}")
    assert rule in text


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SIGNING_SECRET", value) for value in (["whsec_1", ""], [None], {"a": 1})),
        *(("SIGNING_SECRET", value) for value in ([""], 7, " ")),
        *(("WEBHOOK_DEDUPE", value) for value in ("no", 1, None)),
        ("CORRELATION_KEY", "order id"),
    ],
)
def test_a_wrong_option_of_webhooks_is_refused(name: str, value: object) -> None:
    with (
        override_settings(ANYMAIL={f"LETTERMINT_{name}": value}),
        pytest.raises(AnymailConfigurationError, match=f"LETTERMINT_{name}"),
    ):
        webhook_config()
