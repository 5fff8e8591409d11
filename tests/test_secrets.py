"""The token and what is made of it appear in no error, log, pickle or debug page."""

from __future__ import annotations

import base64
import copy
import hmac
import logging
import pickle
from collections import UserDict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import (
    Hidden,
    Secret,
    queue_config,
    tenant_webhook_config,
    webhook_config,
)
from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from django_lettermint.webhooks import LettermintTrackingWebhookView as WebhookView
from tests.exposure import pages_of, strings_in, strings_of
from tests.faultserver import CHALLENGE, TOKEN, FaultServer, On, drop, hang, raw, reply
from tests.sending import (
    SHORT,
    interruptible,
    listening,
    mail,
    result,
    status,
    strike_and_wait,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.faults import Action, Phase

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


def shows_nothing(error: BaseException) -> None:
    assert exposed("\n".join([*pages_of(error), *strings_of(error)])) == []


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


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


# -- the wrapper -------------------------------------------------------------------------


def test_a_secret_shows_its_text_on_request_only() -> None:
    secret = Secret("lm_token")

    assert secret.reveal() == "lm_token"
    assert {repr(secret), str(secret), f"{secret}"} == {"Secret('***')"}
    assert repr(Hidden(["lm_token"])) == "Hidden('***')"
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(secret, protocol)


def test_secrets_are_equal_by_value_and_to_no_text() -> None:
    assert Secret("one") == Secret("one")
    assert hash(Secret("one")) == hash(Secret("one"))
    assert Secret("one") != Secret("two")
    assert Secret("one") != "one"


# -- a configuration that is refused -----------------------------------------------------


LAZILY: dict[str, Callable[[str], object]] = {
    "text": str,
    "lazy object": lambda value: SimpleLazyObject(lambda: value),
    "lazy object that was read": lambda value: was_read(lambda: value),
    "lazystr": lazystr,
    "lazy function": lambda value: lazy(lambda: value, str)(),
}


def was_read(value: Callable[[], str]) -> object:
    read = SimpleLazyObject(value)
    str(read)
    return read


def lazily(value: str) -> list[object]:
    """Return a text, and its lazy forms."""
    return [form(value) for form in LAZILY.values()]


def refused(make: Callable[..., object], *arguments: object, **keywords: Any) -> None:
    """Call what raises a configuration error, and search all that this shows."""
    with pytest.raises(ImproperlyConfigured) as raised:
        make(*arguments, **keywords)
    assert exposed(" ".join(strings_of(raised.value))) == []


BROKEN: dict[str, dict[str, Any]] = {
    "another option": {"port": 0},
    "a lazy option": {"port": SimpleLazyObject(lambda: 1 // 0)},
    "an option of Anymail": {"idna_encoder": "nope"},
    "an unknown option": {"prot": 465},
    "the pool": {"pool": {"max_size": 0}},
    "another secret": {"signing_secret": ["whsec 1"]},
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("form", LAZILY)
def test_a_token_is_in_no_frame_when_something_else_is_wrong(
    broken: str, form: str
) -> None:
    token, wrong = LAZILY[form](TOKEN), BROKEN[broken]
    for name in ("api_token", "password"):
        refused(EmailBackend, **{name: token}, **wrong)
        refused(EmailBackend, **wrong, **{name: token})
    options = {"api_token": token, **wrong}
    refused(EmailBackend, alias="news", **options)
    for settings in (
        {"LETTERMINT_API_TOKEN": token},
        {"ANYMAIL_LETTERMINT_API_TOKEN": token},
        {"ANYMAIL": {"LETTERMINT_API_TOKEN": token, "MAILGUN_API_KEY": TOKEN}},
        {"LETTERMINT_API_TOKEN": "lm_1", "LETTERMINT_SIGNING_SECRET": token},
        {"MAILERS": {"news": {"OPTIONS": options}}, "LETTERMINT_API_TOKEN": token},
    ):
        with override_settings(**settings):
            refused(EmailBackend, **wrong)


@pytest.mark.parametrize("name", ["api_token", "password", "signing_secret"])
def test_a_refused_secret_is_in_no_frame(name: str) -> None:
    odd = [*lazily(f"{TOKEN} with spaces"), [[TOKEN]], TOKEN.encode()]
    for secret in odd:
        refused(EmailBackend, **{"api_token": WRONG, name: secret})
        with override_settings(
            LETTERMINT_API_TOKEN=secret, LETTERMINT_SIGNING_SECRET=secret
        ):
            refused(EmailBackend)
            refused(webhook_config)


def test_one_refused_secret_shows_no_other() -> None:
    refused(EmailBackend, api_token="to ken", signing_secret=TOKEN)
    refused(EmailBackend, api_token=TOKEN, password="pass word")


@pytest.mark.parametrize("name", ["api_key", "token", "api_tokn", "use_tls", "colour"])
def test_a_token_under_a_wrong_name_is_in_no_frame(name: str) -> None:
    for form in lazily(TOKEN):
        refused(EmailBackend, **{name: form})
        refused(EmailBackend, api_token=WRONG, **{name: form})
        refused(queue_config, {name: form})
    with override_settings(ANYMAIL={f"LETTERMINT_{name.upper()}": TOKEN}):
        refused(EmailBackend, api_token=WRONG)


def test_a_token_that_cannot_be_read_is_in_no_frame() -> None:
    def fails_for_now() -> str:
        answers.append("")
        if len(answers) <= 2:  # also when it is asked once more
            raise OSError("the vault is sealed")
        return TOKEN

    for make in (lazy(fails_for_now, str), lambda: SimpleLazyObject(fails_for_now)):
        answers: list[str] = []
        refused(EmailBackend, api_token=make())
        answers = []
        refused(EmailBackend, api_token=WRONG, signing_secret=[make()])


@override_settings(ANYMAIL="nope")
def test_a_keyword_is_in_no_frame_when_the_settings_cannot_be_read() -> None:
    for token in lazily(TOKEN):
        refused(EmailBackend, api_token=token)
        refused(queue_config, {"token": token})
        refused(webhook_config, {"signing_secret": token})
        refused(WebhookView.as_view, signing_secret=token)


# -- mail that does not go out -----------------------------------------------------------


@contextmanager
def configured(server: FaultServer, **options: Any) -> Iterator[None]:
    """Reach a server by settings, as a project does."""
    usual = {"timeout": SHORT, "retries": 1, "final_reply_timeout": SHORT}
    given = server.options(**{**usual, **options})
    settings = {f"LETTERMINT_{name.upper()}": value for name, value in given.items()}
    with override_settings(ANYMAIL=settings):
        yield


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
    options = {"retries": 0} if answer == "silent" else {}
    server = FaultServer(script, auth=(mechanism,))
    with server, configured(server, **options):
        fail(LettermintError, log)
        assert server.logins[0].ok


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_within_a_login_shows_nothing_of_it(
    kind: type[BaseException], mechanism: str, log: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(auth=(mechanism,))
    with server, configured(server, timeout=30), interruptible(kind) as strike:
        server.script.append(On("auth", do=strike_and_wait(strike)))
        fail(kind, log)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_token_is_not_shown(
    mechanism: str, log: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(auth=(mechanism,))
    with server, configured(server, api_token=WRONG):
        fail(LettermintError, log)
        assert [login.ok for login in server.logins] == [False]


PHASES: tuple[Phase, ...] = ("banner", "ehlo", "mail", "rcpt", "data", "dot")
ELSEWHERE = {
    **{f"echo at {each}": On(each, do=reply(550, echo("PLAIN"))) for each in PHASES},
    "lost": On("dot", do=drop()),
    "reset": On("dot", do=drop(rst=True)),
    "silent": On("dot", do=hang()),
}


@pytest.mark.parametrize("failure", ELSEWHERE)
def test_a_failure_elsewhere_shows_nothing_of_the_login(
    failure: str, log: pytest.LogCaptureFixture
) -> None:
    server = FaultServer([ELSEWHERE[failure]])
    with server, configured(server, idempotency=False):
        fail(LettermintError, log)


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_a_sent_message_leaves_no_token_behind(
    tenant: str | None, log: pytest.LogCaptureFixture
) -> None:
    with FaultServer() as server, listening() as heard:
        message = mail()
        message.tenant = tenant  # type: ignore[attr-defined]
        own = {"acme": {"api_token": TOKEN}}
        options = server.options(api_token="lm_of_the_settings" if tenant else TOKEN)
        sender = EmailBackend(**options, tenants=own.__getitem__)
        assert sender.send_messages([message]) == 1
        assert own.pop("acme")
        shared = pool.get_pool(sender.config.endpoint)
        stats = pool.get_stats()
        for thing in (sender, message, heard, shared, stats, status(message)):
            assert exposed(" ".join(strings_in(thing))) == []
        with pytest.raises(TypeError) as refusal:
            pickle.dumps(sender)
        assert exposed(str(refusal.value)) == []
        assert exposed(pickle.dumps(result(message)).decode("latin-1")) == []
        assert exposed(log.text) == []


# -- tenants -----------------------------------------------------------------------------


def raises(error: Exception) -> None:
    raise error


#: What a resolver does that has the token in hand.
RESOLVERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "raises": lambda _: raises(ConnectionError("the database is away")),
    "does not know it": lambda _: raises(LookupError("acme")),
    "returns no mapping": lambda options: [*options.items()],
    "returns a bad value": lambda options: {**options, "port": 0},
    "returns an unknown option": lambda options: {**options, "tokn": WRONG},
    "returns a bad token": lambda _: {"api_token": f"{WRONG} "},
    "returns a wrong token": dict,
}


@pytest.mark.parametrize("failure", RESOLVERS)
def test_a_tenant_whose_mail_cannot_be_sent_shows_no_token(
    failure: str, log: pytest.LogCaptureFixture
) -> None:
    def resolver(name: str) -> object:
        options = {"api_token": WRONG, "signing_secret": WRONG}
        return RESOLVERS[failure](options)

    with FaultServer() as server, configured(server, tenants=resolver, tenant="acme"):
        if failure == "returns a wrong token":
            fail(LettermintError, log)
            assert [login.ok for login in server.logins] == [False]
        else:
            fail(LettermintInvalidMessage, log)
            assert server.connections == 0


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

    for error in (unknown(sender.for_tenant), unknown(tenant_webhook_config, config)):
        for page in pages_of(error):
            assert exposed(page) == []


def unknown(look_up: Callable[..., object], *arguments: object) -> Exception:
    with pytest.raises(LettermintInvalidMessage) as raised:
        look_up(*arguments, "unknown")
    return raised.value
