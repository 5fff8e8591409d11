"""The token and what is made of it appear in no error, log or debug page."""

from __future__ import annotations

import base64
import hmac
import logging
import pickle
from collections import UserDict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import Secret, tenant_webhook_config, webhook_config
from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from tests.exposure import pages_of, strings_in, strings_of
from tests.faultserver import CHALLENGE, TOKEN, FaultServer, On, drop, hang, raw, reply
from tests.sending import (
    SHORT,
    cases,
    interruptible,
    listening,
    mail,
    result,
    status,
    strike_and_wait,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.faults import Action

WRONG = "lm_wrong-token-1f0a"
MECHANISMS = ["PLAIN", "LOGIN", "CRAM-MD5"]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def digest(token: str) -> str:
    return hmac.new(token.encode(), CHALLENGE, "md5").hexdigest()


def forms(token: str, mechanism: str) -> list[str]:
    """Return the token and what AUTH makes of it."""
    response = {
        "PLAIN": f"\0lettermint\0{token}",
        "LOGIN": token,
        "CRAM-MD5": f"lettermint {digest(token)}",
    }
    return [token, b64(token), b64(response[mechanism])]


SECRETS = {
    form
    for token in (TOKEN, WRONG)
    for mechanism in MECHANISMS
    for form in (*forms(token, mechanism), digest(token))
}


def exposed(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@contextmanager
def configured(server: FaultServer, **options: Any) -> Iterator[None]:
    """Reach a server by settings, as a project does."""
    given = server.options(timeout=SHORT, retries=1, **options)
    settings = {f"LETTERMINT_{name.upper()}": value for name, value in given.items()}
    with override_settings(ANYMAIL=settings):
        yield


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def shows_nothing(error: BaseException) -> None:
    assert exposed("\n".join([*pages_of(error), *strings_of(error)])) == []


def fail(kind: type[BaseException], log: pytest.LogCaptureFixture) -> None:
    """Send a mail that does not go out, and search everything that shows it."""
    message = mail()
    with listening() as heard, pytest.raises(kind) as raised:
        EmailBackend().send_messages([message])
    shows_nothing(raised.value)
    for _, found, signalled in heard.failed:
        assert exposed(" ".join(strings_in(found))) == []
        assert exposed(" ".join(strings_of(signalled))) == []
        assert exposed(pickle.dumps(signalled).decode("latin-1")) == []
    shown = [status(message), result(message), pool.get_stats()]
    assert exposed(f"{shown!r} {log.text}") == []


def test_the_search_finds_what_is_there() -> None:
    def hold(value: object) -> None:
        raise LookupError(value)

    class Holder:
        __slots__ = ("value",)

    holder = Holder()
    holder.value = {"deep": [lambda: TOKEN, (TOKEN.encode(),)]}  # type: ignore[attr-defined]
    assert exposed(" ".join(strings_in(holder))) == [TOKEN]
    with pytest.raises(LookupError) as raised:
        hold(b64(TOKEN))
    assert exposed(" ".join(strings_of(raised.value)))
    assert exposed(" ".join(strings_in(Secret(TOKEN)))) == []


def echo(mechanism: str, between: str = " ") -> str:
    return between.join(["you said", *forms(TOKEN, mechanism)])


ANSWERS: dict[str, Callable[[str], Action]] = {
    "refused": lambda _: reply(535, "5.7.8 no"),
    "echo": lambda mechanism: reply(535, echo(mechanism)),
    "echo for now": lambda mechanism: reply(454, echo(mechanism)),
    "echo in lines": lambda mechanism: reply(535, echo(mechanism, "\n")),
    "garbage": lambda mechanism: raw(echo(mechanism).encode() + b"\r\n"),
    "half": lambda mechanism: raw(b"535-%b\r\n" % echo(mechanism).encode(), close=True),
    "lost": lambda _: drop(),
    "reset": lambda _: drop(rst=True),
    "silent": lambda _: hang(),
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_login_that_fails_shows_nothing_of_itself(
    answer: str, mechanism: str, log: pytest.LogCaptureFixture
) -> None:
    script = [On("auth", do=ANSWERS[answer](mechanism))]
    with FaultServer(script, auth=(mechanism,)) as server, configured(server):
        fail(LettermintError, log)
        assert server.logins[0].ok


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_token_is_not_shown(
    mechanism: str, log: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(auth=(mechanism,))
    with server, configured(server, api_token=WRONG):
        fail(LettermintError, log)
        assert [login.ok for login in server.logins] == [False]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_within_a_login_shows_nothing_of_it(
    kind: type[BaseException], mechanism: str, log: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(auth=(mechanism,))
    with server, configured(server), interruptible(kind) as strike:
        server.script.append(On("auth", do=strike_and_wait(strike)))
        fail(kind, log)


@pytest.mark.parametrize("phase", ["banner", "ehlo", "mail", "rcpt", "data", "dot"])
def test_a_relay_that_echoes_the_login_elsewhere_shows_nothing(
    phase: Any, log: pytest.LogCaptureFixture
) -> None:
    script = [On(phase, do=reply(550, f"5.7.1 {echo('PLAIN')}"))]
    with FaultServer(script) as server, configured(server):
        fail(LettermintError, log)


@pytest.mark.parametrize("do", cases(lost=drop(), reset=drop(rst=True), silent=hang()))
def test_an_unconfirmed_message_shows_nothing_of_the_login(
    do: Action, log: pytest.LogCaptureFixture
) -> None:
    options = {"idempotency": False, "final_reply_timeout": SHORT}
    with FaultServer([On("dot", do=do)]) as server, configured(server, **options):
        fail(LettermintError, log)


def test_a_sent_message_leaves_no_token_behind(log: pytest.LogCaptureFixture) -> None:
    with FaultServer() as server, listening() as heard:
        message = mail()
        sender = EmailBackend(**server.options())
        assert sender.send_messages([message]) == 1
        for thing in (
            sender,
            message,
            heard,
            pool.get_pool(sender.config.endpoint),
            status(message),
        ):
            assert exposed(" ".join(strings_in(thing))) == []
        with pytest.raises(TypeError) as refusal:
            pickle.dumps(sender)
        assert exposed(str(refusal.value)) == []
        assert exposed(pickle.dumps(result(message)).decode("latin-1")) == []
        assert exposed(log.text) == []


# -- of tenants --------------------------------------------------------------------------


def tenants_that(fail: str) -> Callable[[str], Any]:
    """Return a resolver that has the token in hand as it fails."""

    def resolver(name: str) -> Any:
        options: dict[str, Any] = {"api_token": WRONG, "signing_secret": WRONG}
        if fail == "raises":
            raise ConnectionError("the database is away")
        if fail == "unknown":
            raise LookupError(name)
        if fail == "no mapping":
            return list(options.items())
        if fail == "bad value":
            return {**options, "port": 0}
        if fail == "unknown option":
            return {**options, "tokn": WRONG}
        if fail == "bad token":
            return {"api_token": f"{WRONG} "}
        return options

    return resolver


@pytest.mark.parametrize(
    "failure",
    ["raises", "unknown", "no mapping", "bad value", "unknown option", "bad token"],
)
def test_a_tenant_without_options_shows_no_token(
    failure: str, log: pytest.LogCaptureFixture
) -> None:
    resolver = tenants_that(failure)
    with FaultServer() as server, configured(server, tenants=resolver, tenant="acme"):
        fail(LettermintInvalidMessage, log)


def test_a_wrong_token_of_a_tenant_is_not_shown(log: pytest.LogCaptureFixture) -> None:
    resolver = tenants_that("refused by the relay")
    with FaultServer() as server, configured(server, tenants=resolver, tenant="acme"):
        fail(LettermintError, log)
        assert [login.ok for login in server.logins] == [False]


def look_up(known: Mapping[str, Any], name: str) -> Any:
    return known[name]


@pytest.mark.parametrize(
    "resolver",
    [
        partial(look_up, {"acme": {"api_token": TOKEN}}),
        UserDict(acme={"api_token": TOKEN}).__getitem__,
    ],
    ids=["partial", "method"],
)
def test_a_resolver_that_holds_all_tokens_shows_none(
    resolver: Callable[[str], Any],
) -> None:
    assert exposed(repr(resolver))
    sender = EmailBackend(api_token=WRONG, tenants=resolver)
    with override_settings(LETTERMINT_TENANTS=resolver):
        config = webhook_config()

    for error in (refusal(sender.for_tenant), refusal(tenant_webhook_config, config)):
        for page in pages_of(error):
            assert exposed(page) == []


def refusal(look_up: Callable[..., object], *arguments: object) -> Exception:
    with pytest.raises(LettermintInvalidMessage) as raised:
        look_up(*arguments, "unknown")
    return raised.value


def test_a_message_sent_for_a_tenant_leaves_no_token_behind(
    log: pytest.LogCaptureFixture,
) -> None:
    with FaultServer() as server, listening() as heard:
        own = {"acme": {"api_token": TOKEN}}
        options = server.options(api_token="lm_of_the_settings")
        sender = EmailBackend(**options, tenants=own.__getitem__)
        message = mail()
        message.tenant = "acme"  # type: ignore[attr-defined]
        assert sender.send_messages([message]) == 1
        assert own.pop("acme")
        theirs = pool.get_stats()
        for thing in (message, heard, status(message), sender, theirs):
            assert exposed(" ".join(strings_in(thing))) == []
        assert exposed(pickle.dumps(message).decode("latin-1")) == []
        assert exposed(log.text) == []


def test_an_error_within_webhooks_shows_no_secret_of_a_tenant() -> None:
    with override_settings(LETTERMINT_TENANTS=tenants_that("raises")):
        config = webhook_config()
        with pytest.raises(LettermintInvalidMessage) as raised:
            tenant_webhook_config(config, "acme")
    shows_nothing(raised.value)
