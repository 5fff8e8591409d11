"""Values that options take and refuse, all by way of `backend_config()`."""

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
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.conf import OPTIONS, PoolConfig, backend_config, queue_config
from django_lettermint.conf.validators import InvalidOption, host
from tests.certificates import ca_file as pem_file

from .reading import TOKEN, config, refusal, relay

OFF = {
    "security",
    "auth_mechanism",
    "ca_file",
    "local_hostname",
    "batch_connections",
    "idempotency",
    "correlation_key",
    "signing_secret",
    "tenants",
    "tenant",
}


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"webhook_dedupe"}))
def test_none_is_a_value_in_settings_only_where_it_means_something(name: str) -> None:
    setting = f"LETTERMINT_{name.upper()}"
    with override_settings(**{"LETTERMINT_API_TOKEN": TOKEN, setting: None}):
        if name in OFF:
            key = None if name == "correlation_key" else "django_message_id"
            assert backend_config({}).correlation_key == key
            return
        with pytest.raises(AnymailConfigurationError, match=f"^{setting} must be "):
            backend_config({})


NO_NUMBERS = [True, "10", [], 10j, math.nan, math.inf, -math.inf, 10**400]
TIME = "a number of seconds above 0 and at most 1000000"
NO_FLAGS = [0, 1, "true", "False", ""]

#: Option, rule and values; the name of an option of the pool follows a dot.
REFUSED: list[tuple[str, str, list[object]]] = [
    *(
        (name, f"{TIME} (it cannot be off", [*NO_NUMBERS, 0, 0.0, -1, 1_000_001])
        for name in (
            *("timeout", "final_reply_timeout", "deadline"),
            *("pool.timeout", "pool.max_idle", "pool.max_lifetime"),
        )
    ),
    ("pool.ping_after", "a number of seconds from 0 to 1000000, or None",
        [True, "1", -1, 1_000_001, math.nan]),
    ("port", "a whole number, from 1 to 65535",
        [True, False, "465", 465.0, 0, -1, 65536]),
    ("retries", "a whole number, 0 or more", [True, 1.0, "1", -1]),
    ("pool.max_size", "a whole number, 1 or more", [0, True, "4"]),
    ("pool.max_waiting", "a whole number, 0 or more", [-1]),
    ("pool.max_messages", "a whole number, 0 or more", [-1]),
    ("pool", "True, False or a dict", [1, "true", ["max_size"]]),
    ("pipelining", "True or False", NO_FLAGS),
    ("chunking", "True or False", NO_FLAGS),
    ("idempotency", "True or False", NO_FLAGS),
    ("ignore_recipient_status", "True or False", ["false"]),
    ("api_token", "a string of printable ASCII",
        ["", " ", None, b"token", 7, "to ken", "token\n", "tokeñ", "\x00", ["t"]]),
    ("username", "a non-empty string of printable ASCII",
        ["", (), "a b", "nul\0", "ü", 1]),
    ("security", "one of 'tls', 'starttls', 'plaintext'", ["ssl", True, "", 1]),
    ("auth_mechanism", "one of 'PLAIN', 'LOGIN', 'CRAM-MD5'",
        ["", "XOAUTH2", 1, ["PLAIN"]]),
    ("ca_file", "the path of an existing file",
        ["", "missing.pem", "a\0b", Path("/"), b"x", 7]),
    ("correlation_key", "a metadata key",
        ["", "order:id", "order id", "é", "a\n", 1, False]),
    ("send_defaults", "a dict", ["tag", [("tag", "a")]]),
    ("host", "a host name or IP address",
        ["", b"localhost", "smtp lettermint.co", "smtp.lettermint.co\r\n",
         "smtp.lettermint.co:465", "smtps://smtp.lettermint.co", "smtp..lettermint.co",
         "smtp.lettermint.co.", "[::1]", "a" * 64, ".".join(["a" * 49] * 5 + ["aaaa"]),
         "☃\u200b\u2028", "-ü.example"]),
    ("local_hostname", "a host name (letters",
        ["", 7, "my_host", "-host", "host-", "a..b", "host\r\nMAIL FROM:<x>",
         "bücher.example", "[::1]", "[IPv6:127.0.0.1]", "[IPv6:fe80::1%eth0]",
         "[127.0.0.1", "127.0.0.1]", "[host]", "a." * 127 + "aa"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rule", "value"),
    [
        pytest.param(name, rule, value, id=f"{name}-{number}")
        for name, rule, values in REFUSED
        for number, value in enumerate(values)
    ],
)
def test_a_value_that_breaks_the_rule_of_its_option_is_refused(
    name: str, rule: str, value: object
) -> None:
    option, _, of_pool = name.partition(".")
    problem = refusal(**{option: {of_pool: value} if of_pool else value})

    place = f"{option}[{of_pool!r}]" if of_pool else option
    assert f"the constructor keyword {place} must be {rule}" in problem
    assert option == "api_token" or repr(value)[:5] in problem


ACCEPTED: list[tuple[str, list[object]]] = [
    ("timeout", [1, 0.25, 1_000_000]),
    ("pool.ping_after", [None, 0, 0.5, 1_000_000]),
    ("pool.max_waiting", [0]),
    ("pool.max_messages", [0]),
    ("pool.max_size", [1]),
    ("port", [1, 65535]),
    ("retries", [0]),
    ("chunking", [True, False]),
    (
        "host",
        [
            *("smtp.lettermint.co", "relay_1", "10.0.0.1", "::1", "fe80::1%eth0"),
            *("a" * 63, ".".join(["a" * 49] * 5 + ["aaa"])),
        ],
    ),
    (
        "local_hostname",
        ["mx-1.example.com", "host", "[127.0.0.1]", "[IPv6:::1]", "a." * 127 + "a"],
    ),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in ACCEPTED for value in values],
)
def test_a_value_that_follows_the_rule_of_its_option_is_taken(
    name: str, value: object
) -> None:
    option, _, of_pool = name.partition(".")
    found = relay(security="tls", **{option: {of_pool: value} if of_pool else value})

    if of_pool:
        assert getattr(found.endpoint.pool, of_pool) == value
    else:
        holder = found.endpoint if hasattr(found.endpoint, option) else found
        assert getattr(holder, option) == value


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("host", "smtp.bücher.example", "smtp.xn--bcher-kva.example"),
        ("host", "smtp.BÜCHER.example", "smtp.xn--bcher-kva.example"),
        ("auth_mechanism", "cram-md5", "CRAM-MD5"),
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


@pytest.mark.parametrize("value", [0, 24 * 3600 + 1, True, "60"])
def test_a_queue_gives_up_within_a_day(value: object) -> None:
    rule = "above 0 and at most 86400, not"
    with pytest.raises(AnymailConfigurationError, match=rule):
        queue_config({"give_up_after": value})
    assert queue_config({"give_up_after": 24 * 3600}).give_up_after == 24 * 3600


@pytest.mark.parametrize("content", ["", "no certificate\n", "-----BEGIN CERTIFICATE"])
def test_a_ca_file_holds_certificates(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(content)
    assert "ca_file must be the path of an existing file" in refusal(ca_file=path)

    # A corrected file is read again.
    path.write_bytes(Path(pem_file()).read_bytes())
    assert relay(ca_file=path).endpoint.ca_file == str(path)


# -- the pool ----------------------------------------------------------------------------


def test_the_pool_is_described_by_a_dict() -> None:
    pool = {
        "max_size": 8,
        "timeout": 1.5,
        "max_waiting": 3,
        "max_idle": 5,
        "max_lifetime": 60,
        "max_messages": 0,
        "ping_after": 0,
    }

    endpoint = relay(pool=pool).endpoint

    assert endpoint.pool == PoolConfig(**pool)  # type: ignore[arg-type]
    assert endpoint.pooled is True
    without = relay(pool=False).endpoint
    assert (without.pooled, without.pool) == (False, PoolConfig())


def test_a_misspelt_key_of_the_pool_is_refused_with_a_suggestion() -> None:
    problem = "pool['maxsize'] is not an option here. Did you mean 'max_size'?"

    assert problem in refusal(pool={"maxsize": 4})
    assert "Known are max_size, timeout, max_waiting" in refusal(pool={7: 4})


def test_a_refused_value_of_the_pool_comes_with_its_own_default() -> None:
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
    package.encode = str.encode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uts46", package)
    assert config(idna_encoder="uts46").idna_encoder("a.example") == "a.example"

    monkeypatch.setitem(sys.modules, "uts46", None)
    assert "keyword idna_encoder must be" in refusal(idna_encoder="uts46")


@pytest.mark.parametrize("encoder", ["nope", "django.nope", "django.VERSION", 7])
def test_another_idna_encoder_is_refused(encoder: object) -> None:
    with override_settings(ANYMAIL={"IDNA_ENCODER": encoder}):
        assert refusal().startswith("ANYMAIL['IDNA_ENCODER'] must be ")


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
        ("colour", "x", "is not an option here"),
        (7, "x", "is not an option here"),
        ("route", "a.b", "breaks a rule. … a route slug has at most 255 ASCII letters"),
        ("tag", "user@example.com", "breaks a rule. … a tag has at most 255 ASCII"),
        ("tag", 5, "breaks a rule. … it must be a str"),
        ("tags", "news", "breaks a rule. … use a list with one tag"),
        ("tags", ["a.b"], "breaks a rule. … a tag has at most 255 ASCII letters"),
        ("metadata", ["k"], "breaks a rule. … use a mapping"),
        ("metadata", {"k": None}, "breaks a rule. … use str, int, float"),
        ("metadata", {"k": "x" * 1000}, "breaks a rule. … no space to fold it at"),
        ("esp_extra", {"route": "a.b"}, "breaks a rule. … a route slug has"),
        ("esp_extra", {"idempotency_key": "k"}, "breaks a rule. … drop every message"),
        ("extra_headers", {"X-LM-Tag": "a.b"}, "breaks a rule. … a tag has at most"),
        ("extra_headers", {"X A": "b"}, "breaks a rule. … printable ASCII characters"),
        ("extra_headers", {"Idempotency-Key": "k"}, "breaks a rule. … drop every"),
        (
            "extra_headers",
            {"x-lettermint-tenant": "a"},
            "breaks a rule. … the option `",
        ),
        ("extra_headers", [("X-A", "b")], "must be a dict, not [('X-A', 'b')]"),
        ("merge_metadata", "a@b.c", "must be a dict, not 'a@b.c'"),
        ("cc", "a@b.c", "must be a list, not 'a@b.c'"),
        ("reply_to", {"a@b.c"}, "must be a list, not {'a@b.c'}"),
        ("attachments", b"data", "must be a list, not b'data'"),
        ("subject", 5, "must be a string, not 5"),
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
