"""Values that options take and refuse, all by way of `backend_config()`."""

from __future__ import annotations

import math
import traceback
from email.headerregistry import Address
from pathlib import Path
from typing import Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.test import override_settings
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from django_lettermint.conf import (
    OPTIONS,
    BackendConfig,
    PoolConfig,
    RelayConfig,
    backend_config,
    queue_config,
)
from django_lettermint.conf.validators import InvalidOption, host
from tests.certificates import ca_file as pem_file

TOKEN = "lm_5f0c1e9a7b"


def config(**options: Any) -> BackendConfig:
    return backend_config({"api_token": TOKEN, **options})


def relay(**options: Any) -> RelayConfig:
    return config(**options).relay


def refusal(**options: Any) -> str:
    with pytest.raises(AnymailConfigurationError) as raised:
        config(**options)
    return str(raised.value)


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


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - OFF - {"webhook_dedupe"}))
def test_none_is_no_value_in_settings(name: str) -> None:
    setting = f"LETTERMINT_{name.upper()}"
    with (
        override_settings(**{"LETTERMINT_API_TOKEN": TOKEN, setting: None}),
        pytest.raises(AnymailConfigurationError, match=f"^{setting} must be "),
    ):
        backend_config({})


@pytest.mark.parametrize("name", sorted(OFF))
def test_none_is_a_value_in_settings_where_it_means_something(name: str) -> None:
    with override_settings(**{f"LETTERMINT_{name.upper()}": None}):
        assert config().correlation_key == (
            None if name == "correlation_key" else "django_message_id"
        )


NEVER_NUMBERS = [True, "10", [], 10j, math.nan, math.inf, -math.inf, 10**400]


@pytest.mark.parametrize("value", [*NEVER_NUMBERS, 0, 0.0, -1])
@pytest.mark.parametrize("name", ["timeout", "final_reply_timeout", "deadline"])
def test_a_time_is_a_finite_number_above_0(name: str, value: object) -> None:
    assert f"{name} must be a number of seconds above 0" in refusal(**{name: value})


@pytest.mark.parametrize("value", [*NEVER_NUMBERS, 0, -1])
@pytest.mark.parametrize("name", ["timeout", "max_idle", "max_lifetime"])
def test_a_time_of_the_pool_is_a_finite_number_above_0(
    name: str, value: object
) -> None:
    problem = refusal(pool={name: value})

    assert f"pool['{name}'] must be a number of seconds above 0" in problem


@pytest.mark.parametrize("value", [0, 24 * 3600 + 1, True, "60"])
def test_a_queue_gives_up_within_a_day(value: object) -> None:
    with pytest.raises(
        AnymailConfigurationError, match="above 0 and at most 86400, not"
    ):
        queue_config({"give_up_after": value})


def test_the_refusal_of_0_tells_that_a_timeout_cannot_be_off() -> None:
    assert "it cannot be off" in refusal(timeout=0)


@pytest.mark.parametrize("value", [1, 0.25, 1_000_000])
def test_times_are_whole_or_fractional_seconds(value: float) -> None:
    assert relay(deadline=value).deadline == value


@pytest.mark.parametrize("value", [True, "1", -1, 1_000_001, math.nan])
def test_ping_after_is_no_less_than_0(value: object) -> None:
    assert "from 0 to 1000000, or None" in refusal(pool={"ping_after": value})


@pytest.mark.parametrize("value", [None, 0, 0.5])
def test_ping_after_may_mean_never_or_always(value: float | None) -> None:
    assert relay(pool={"ping_after": value}).endpoint.pool.ping_after == value


@pytest.mark.parametrize("value", [True, False, "465", 465.0, 0, -1, 65536])
def test_a_port_is_a_whole_number_from_1_to_65535(value: object) -> None:
    problem = refusal(port=value)

    assert f"port must be a whole number, from 1 to 65535, not {value!r}" in problem


@pytest.mark.parametrize("port", [1, 65535])
def test_the_first_and_the_last_port_are_ports(port: int) -> None:
    assert relay(port=port, security="tls").endpoint.port == port


@pytest.mark.parametrize("value", [True, 1.0, "1", -1])
def test_retries_are_a_whole_number(value: object) -> None:
    assert "retries must be a whole number, 0 or more" in refusal(retries=value)


def test_no_retries_are_possible() -> None:
    assert relay(retries=0).retries == 0


@pytest.mark.parametrize("value", [0, True, "4"])
def test_a_pool_has_room_for_a_connection(value: object) -> None:
    assert "['max_size'] must be a whole number, 1 or more" in refusal(
        pool={"max_size": value}
    )


@pytest.mark.parametrize("name", ["max_waiting", "max_messages"])
def test_0_lifts_a_limit_of_the_pool(name: str) -> None:
    assert getattr(relay(pool={name: 0}).endpoint.pool, name) == 0


@pytest.mark.parametrize("name", ["pipelining", "chunking", "idempotency"])
@pytest.mark.parametrize("value", [0, 1, "true", "False", ""])
def test_a_switch_takes_no_stand_in_for_true_and_false(
    name: str, value: object
) -> None:
    assert f"{name} must be True or False, not {value!r}" in refusal(**{name: value})


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_is_true_or_false(*, value: bool) -> None:
    assert relay(chunking=value).chunking is value


@pytest.mark.parametrize(
    "value", ["", " ", None, b"token", 7, "to ken", "token\n", "tokeñ", "\x00", ["t"]]
)
def test_a_token_is_one_word_of_printable_ascii(value: object) -> None:
    assert "must be a string of printable ASCII" in refusal(api_token=value)


@pytest.mark.parametrize("value", ["sesame open", b"sesame", ["sesame"], "sesame\n"])
@pytest.mark.parametrize("name", ["api_token", "password", "signing_secret"])
def test_a_refused_secret_is_in_no_part_of_the_error(name: str, value: object) -> None:
    options = {"api_token": TOKEN, name: value}
    if value == ["sesame"]:  # a list is fine for the signing secret
        options[name] = [["sesame"]]

    with pytest.raises(AnymailConfigurationError) as raised:
        backend_config(options)

    error = raised.value
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    inner = [frame for frame in shown.stack if "/django_lettermint/" in frame.filename]
    assert inner
    assert error.__context__ is None
    assert "sesame" not in f"{error!r} {[frame.locals for frame in inner]}"


def test_a_later_error_finds_no_secret_among_the_keywords() -> None:
    options = {"port": 0, "signing_secret": "whsec_1", "api_token": TOKEN}

    with pytest.raises(AnymailConfigurationError):
        backend_config(options)

    assert not {"api_token", "signing_secret"} & options.keys()


@pytest.mark.parametrize(
    "value",
    ["smtp.lettermint.co", "relay_1", "10.0.0.1", "::1", "fe80::1%eth0", "a" * 63],
)
def test_a_host_is_a_name_or_an_address(value: str) -> None:
    assert relay(host=value).endpoint.host == value


def test_a_host_beyond_ascii_is_written_as_idna() -> None:
    assert (
        relay(host="smtp.bücher.example").endpoint.host == "smtp.xn--bcher-kva.example"
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        b"localhost",
        "smtp lettermint.co",
        "smtp.lettermint.co\r\n",
        "smtp.lettermint.co:465",
        "smtps://smtp.lettermint.co",
        "smtp..lettermint.co",
        "smtp.lettermint.co.",
        "[::1]",
        "a" * 64,
        ".".join(["a" * 49] * 6),
        "☃\u200b\u2028",
        "-ü.example",
    ],
)
def test_what_no_resolver_would_take_is_no_host(value: object) -> None:
    assert "host must be a host name or IP address" in refusal(host=value)


@given(st.text())
def test_any_text_is_a_host_that_sockets_can_take_or_refused(text: str) -> None:
    try:
        name = host(text)
    except InvalidOption:
        return
    assert name.isascii()
    assert not set(name) & set(" \r\n\t\0")
    assert name.encode("idna")


@pytest.mark.parametrize(
    "value", ["mx-1.example.com", "host", "[127.0.0.1]", "[IPv6:::1]"]
)
def test_the_ehlo_name_is_a_domain_or_an_address_literal(value: str) -> None:
    assert relay(local_hostname=value).endpoint.local_hostname == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        7,
        "my_host",
        "-host",
        "host-",
        "a..b",
        "host\r\nMAIL FROM:<x>",
        "bücher.example",
        "[::1]",
        "[IPv6:127.0.0.1]",
        "[IPv6:fe80::1%eth0]",
        "[127.0.0.1",
        "[host]",
        "a." * 127 + "aa",
    ],
)
def test_nothing_else_is_said_at_ehlo(value: object) -> None:
    assert "local_hostname must be a host name (letters" in refusal(
        local_hostname=value
    )


@pytest.mark.parametrize("value", ["", (), "a b", "nul\0", "ü", 1])
def test_a_username_is_one_word_of_printable_ascii(value: object) -> None:
    assert "username must be a non-empty string" in refusal(username=value)


@pytest.mark.parametrize("value", ["cram-md5", "CRAM-MD5", "Cram-Md5"])
def test_a_login_method_is_known_in_any_letter_case(value: str) -> None:
    assert relay(auth_mechanism=value).endpoint.auth_mechanism == "CRAM-MD5"


@pytest.mark.parametrize("value", ["", "XOAUTH2", 1, ["PLAIN"]])
def test_other_login_methods_are_refused(value: object) -> None:
    assert "must be one of 'PLAIN', 'LOGIN', 'CRAM-MD5'" in refusal(
        auth_mechanism=value
    )


def test_a_ca_file_may_be_a_path_object() -> None:
    path = pem_file()

    assert (
        relay(ca_file=Path(path)).endpoint.ca_file
        == relay(ca_file=path).endpoint.ca_file
        == path
    )


@pytest.mark.parametrize("value", ["", "missing.pem", "a\0b", Path("/"), b"x", 7])
def test_a_ca_file_is_a_file_that_exists(value: object) -> None:
    assert "ca_file must be the path of an existing file" in refusal(ca_file=value)


@pytest.mark.parametrize("content", ["", "no certificate\n", "-----BEGIN CERTIFICATE"])
def test_a_ca_file_holds_certificates(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(content)

    assert "ca_file must be the path of an existing file" in refusal(ca_file=path)


def test_a_ca_file_that_was_mended_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.touch()
    refusal(ca_file=path)

    path.write_bytes(Path(pem_file()).read_bytes())

    assert relay(ca_file=path).endpoint.ca_file == str(path)


@pytest.mark.parametrize("value", ["Order-Id", "order_id", "!#$"])
def test_the_correlation_key_is_a_metadata_key(value: str) -> None:
    assert config(correlation_key=value).correlation_key == value


@pytest.mark.parametrize("value", ["", "order:id", "order id", "é", "a\n", 1, False])
def test_other_correlation_keys_are_refused(value: object) -> None:
    assert "correlation_key must be a metadata key" in refusal(correlation_key=value)


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

    config = relay(pool=pool)

    assert config.endpoint.pool == PoolConfig(**pool)  # type: ignore[arg-type]
    assert config.endpoint.pooled is True


@pytest.mark.parametrize("value", [1, "true", ["max_size"]])
def test_a_pool_is_nothing_else(value: object) -> None:
    assert "pool must be True, False or a dict" in refusal(pool=value)


def test_a_misspelt_key_of_the_pool_is_refused_with_a_suggestion() -> None:
    problem = refusal(pool={"maxsize": 4})

    assert "pool['maxsize'] is not an option here. Did you mean 'max_size'?" in problem


def test_a_key_of_the_pool_like_no_other_is_refused_with_the_list() -> None:
    assert "Known are max_size, timeout, max_waiting" in refusal(pool={7: 4})


def test_a_refused_value_of_the_pool_comes_with_its_own_default() -> None:
    assert "remove it for the default, 45.0." in refusal(pool={"max_idle": "45"})


def test_send_defaults_take_what_a_message_has() -> None:
    defaults = {
        "route": "news",
        "tag": "a",
        "metadata": {"k": 1},
        "reply_to": ["a@b.c"],
    }

    assert config(send_defaults=defaults).send_defaults == defaults


def test_send_defaults_are_a_copy() -> None:
    defaults = {"tag": "a"}
    taken = config(send_defaults=defaults).send_defaults

    defaults.clear()

    assert taken == {"tag": "a"}


@pytest.mark.parametrize("value", ["tag", [("tag", "a")]])
def test_send_defaults_are_a_dict(value: object) -> None:
    assert "send_defaults must be a dict" in refusal(send_defaults=value)


@pytest.mark.parametrize("key", ["idempotency_key", "colour", 7])
def test_other_send_defaults_are_refused(key: object) -> None:
    problem = refusal(send_defaults={key: "x"})

    assert f"send_defaults[{key!r}] is not an option here" in problem


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("route", "a.b", "a route slug has at most 255 ASCII letters"),
        ("tag", "user@example.com", "a tag has at most 255 ASCII letters"),
        ("tag", 5, "it must be a str"),
        ("tags", "news", "use a list with one tag"),
        ("tags", ["a.b"], "a tag has at most 255 ASCII letters"),
        ("metadata", ["k"], "use a mapping"),
        ("metadata", {"k": None}, "use str, int, float"),
        ("metadata", {"k": "x" * 1000}, "no space to fold it at"),
        ("esp_extra", {"route": "a.b"}, "a route slug has"),
        ("extra_headers", {"X-LM-Tag": "a.b"}, "a tag has at most 255 ASCII letters"),
        ("extra_headers", {"X A": "b"}, "printable ASCII characters without space"),
    ],
)
def test_a_send_default_that_no_message_could_have_is_refused(
    key: str, value: object, rule: str
) -> None:
    problem = refusal(send_defaults={key: value})

    assert f"keyword send_defaults[{key!r}] breaks a rule. " in problem
    assert rule in problem


@pytest.mark.parametrize(
    "defaults",
    [
        {"esp_extra": {"idempotency_key": "k"}},
        {"extra_headers": {"Idempotency-Key": "k"}},
    ],
)
def test_a_key_that_would_make_the_relay_drop_mail_is_no_send_default(
    defaults: dict[str, Any],
) -> None:
    assert "would drop every message but the first" in refusal(send_defaults=defaults)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("cc", "a@b.c", "a list"),
        ("reply_to", {"a@b.c"}, "a list"),
        ("attachments", b"data", "a list"),
        ("extra_headers", [("X-A", "b")], "a dict"),
        ("merge_metadata", "a@b.c", "a dict"),
        ("subject", 5, "a string"),
        ("envelope_sender", ["a@b.c"], "a string"),
    ],
)
def test_a_send_default_of_another_type_is_refused(
    key: str, value: object, rule: str
) -> None:
    problem = refusal(send_defaults={key: value})

    assert f"send_defaults[{key!r}] must be {rule}, not {value!r}" in problem


@override_settings(ANYMAIL={"LETTERMINT_SEND_DEFAULTS": {"tag": "a.b"}})
def test_a_refused_send_default_is_found_where_it_was_set() -> None:
    assert "ANYMAIL['LETTERMINT_SEND_DEFAULTS']['tag'] breaks a rule." in refusal()


@pytest.mark.parametrize(
    "defaults",
    [
        {"tag": gettext_lazy("a"), "metadata": {"k": gettext_lazy("v")}},
        {"subject": gettext_lazy("Hi"), "envelope_sender": Address("", "a", "b.c")},
        {"cc": ("a@b.c",), "tags": ["a"], "extra_headers": {"X-A": 1}},
        {"tags": ["several", "if unsupported features are ignored"]},
        dict.fromkeys(["tag", "tags", "metadata", "cc", "extra_headers", "subject"]),
        {"send_at": 1_900_000_000},
    ],
)
def test_what_a_message_could_have_is_taken_as_a_send_default(
    defaults: dict[str, Any],
) -> None:
    assert config(send_defaults=defaults).send_defaults == defaults
