"""The token and what is made of it: looked for wherever an error, a log or a page shows things."""

from __future__ import annotations

import base64
import hmac
import logging
import pickle
import types
from collections import UserDict
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpRequest
from django.test import override_settings
from django.views.debug import ExceptionReporter

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import Hidden, Secret, tenant_webhook_config, webhook_config
from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from tests.faultserver import CHALLENGE, TOKEN, FaultServer, On, drop, hang, raw, reply
from tests.sending import (
    SHORT,
    Heard,
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


def strings_in(thing: object, depth: int = 8, seen: set[int] | None = None) -> Iterator[str]:  # fmt: skip
    """Yield all text and bytes that can be reached from a thing, as a debugger does."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, Hidden | type | types.ModuleType):
        return
    seen.add(id(thing))
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, bytes | bytearray | memoryview):
        yield bytes(thing).decode("latin-1")
    elif depth:
        for part in parts_of(thing):
            yield from strings_in(part, depth - 1, seen)


def parts_of(thing: Any) -> Iterator[object]:
    yield repr(thing)
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    elif isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
    else:
        yield from getattr(thing, "__dict__", {}).values()
        for kind in type(thing).__mro__:
            for name in getattr(kind, "__slots__", ()):
                yield getattr(thing, name, None)


def strings_of(error: BaseException) -> Iterator[str]:
    """Yield what an error, its causes, and the frames of ours it came through hold."""
    chain: list[BaseException] = []
    following: list[BaseException | None] = [error]
    while following:
        each = following.pop()
        if each is not None and each not in chain:
            chain.append(each)
            following += [each.__cause__, each.__context__]
    for each in chain:
        yield from (str(each), repr(each))
        yield from strings_in(each.args)
        yield from strings_in(vars(each))
        trace = each.__traceback__
        while trace:
            # The frames of this test know the token, and may.
            if "/tests/" not in trace.tb_frame.f_code.co_filename:
                yield from strings_in(dict(trace.tb_frame.f_locals))
            trace = trace.tb_next


def pages_of(error: BaseException) -> Iterator[str]:
    """Yield Django's pages and mails about an error."""
    request = HttpRequest()
    request.META["SERVER_NAME"], request.META["SERVER_PORT"] = "localhost", "80"
    for debug in (True, False):
        with override_settings(DEBUG=debug):
            for is_email in (True, False):
                reporter = ExceptionReporter(
                    request, type(error), error, error.__traceback__, is_email=is_email
                )
                yield reporter.get_traceback_html()
                yield reporter.get_traceback_text()


@contextmanager
def configured(server: FaultServer, **options: Any) -> Iterator[None]:
    """Reach a server by settings, as a project does."""
    given = server.options(timeout=SHORT, retries=1, **options)
    settings = {f"LETTERMINT_{name.upper()}": value for name, value in given.items()}
    with override_settings(ANYMAIL=settings):
        yield


def fail(kind: type[BaseException]) -> tuple[BaseException, Heard]:
    """Send a mail that does not go out, and look at all but what it raised."""
    message = mail()
    with listening() as heard, pytest.raises(kind) as raised:
        EmailBackend().send_messages([message])
    for page in pages_of(raised.value):
        assert exposed(page) == []
    assert exposed(repr(status(message))) == []
    assert exposed(repr(result(message))) == []
    return raised.value, heard


def check(error: BaseException, heard: Heard, log: str) -> None:
    """Look everywhere."""
    assert [each for text in strings_of(error) for each in exposed(text)] == []
    for _, found, signalled in heard.failed:
        assert [each for text in strings_in(found) for each in exposed(text)] == []
        assert [each for text in strings_of(signalled) for each in exposed(text)] == []
        assert exposed(pickle.dumps(signalled).decode("latin-1")) == []
    assert exposed(log) == []
    assert exposed(repr(pool.get_stats())) == []


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
    answer: str, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    script = [On("auth", do=ANSWERS[answer](mechanism))]
    with FaultServer(script, auth=(mechanism,)) as server, configured(server):
        error, heard = fail(LettermintError)
        assert server.logins[0].ok
        check(error, heard, caplog.text)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_token_is_not_shown(
    mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = FaultServer(auth=(mechanism,))
    with server, configured(server, api_token=WRONG):
        error, heard = fail(LettermintError)
        assert [login.ok for login in server.logins] == [False]
        check(error, heard, caplog.text)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_within_a_login_shows_nothing_of_it(
    kind: type[BaseException], mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = FaultServer(auth=(mechanism,))
    with server, configured(server), interruptible(kind) as strike:
        server.script.append(On("auth", do=strike_and_wait(strike)))
        error, heard = fail(kind)
        check(error, heard, caplog.text)


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot"])
def test_a_relay_that_echoes_the_login_later_shows_nothing(
    phase: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    script = [On(phase, do=reply(550, f"5.7.1 {echo('PLAIN')}"))]
    with FaultServer(script) as server, configured(server):
        error, heard = fail(LettermintError)
        check(error, heard, caplog.text)


@pytest.mark.parametrize("phase", ["banner", "ehlo"])
def test_a_relay_that_knows_the_token_before_shows_nothing(
    phase: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        FaultServer([On(phase, do=reply(550, echo("PLAIN")))]) as server,
        configured(server),
    ):
        error, heard = fail(LettermintError)
        check(error, heard, caplog.text)


@pytest.mark.parametrize("do", cases(lost=drop(), reset=drop(rst=True), silent=hang()))
def test_an_unconfirmed_message_shows_nothing_of_the_login(
    do: Action, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = {"idempotency": False, "final_reply_timeout": SHORT}
    with FaultServer([On("dot", do=do)]) as server, configured(server, **options):
        error, heard = fail(LettermintError)
        check(error, heard, caplog.text)


def test_what_is_sent_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
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
        assert exposed(caplog.text) == []


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
def test_a_tenant_that_cannot_be_had_shows_no_token(
    failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    resolver = tenants_that(failure)
    with FaultServer() as server, configured(server, tenants=resolver, tenant="acme"):
        error, heard = fail(LettermintInvalidMessage)
        check(error, heard, caplog.text)


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


def test_a_wrong_token_of_a_tenant_is_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    resolver = tenants_that("refused by the relay")
    with FaultServer() as server, configured(server, tenants=resolver, tenant="acme"):
        error, heard = fail(LettermintError)
        assert [login.ok for login in server.logins] == [False]
        check(error, heard, caplog.text)


def test_what_is_sent_for_a_tenant_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
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
        assert exposed(caplog.text) == []


def test_an_error_within_webhooks_shows_no_secret_of_a_tenant() -> None:
    with override_settings(LETTERMINT_TENANTS=tenants_that("raises")):
        config = webhook_config()
        with pytest.raises(LettermintInvalidMessage) as raised:
            tenant_webhook_config(config, "acme")
    for page in pages_of(raised.value):
        assert exposed(page) == []
    assert [each for text in strings_of(raised.value) for each in exposed(text)] == []
