"""What debug pages show of a configuration that is refused: no token, lazy or not."""

from __future__ import annotations

import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anymail
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.template.defaultfilters import pprint
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy, lazystr
from django.views.debug import ExceptionReporter

import django_lettermint
from django_lettermint.backend import EmailBackend
from django_lettermint.conf import Hidden, queue_config, webhook_config
from django_lettermint.webhooks import LettermintTrackingWebhookView as WebhookView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "sesame-1f0a"
OURS = tuple(
    str(Path(str(package.__file__)).parent) for package in (django_lettermint, anymail)
)


def texts(value: object, depth: int = 6) -> Iterator[str]:
    """Yield all text that a debugger reaches from a variable."""
    if isinstance(value, Hidden | type | types.ModuleType | types.FunctionType):
        return
    yield repr(value)
    if not depth:
        return
    inner: list[object] = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, dict):
        inner += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner += value
    for each in inner:
        yield from texts(each, depth - 1)


def shown(error: BaseException) -> Iterator[str]:
    """Yield what an error and the frames of ours and Anymail's show."""
    following: list[BaseException | None] = [error]
    while following:
        if (each := following.pop()) is None:
            continue
        yield from (str(each), repr(each))
        following += [each.__cause__, each.__context__]
        trace = each.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename.startswith(OURS):
                for value in dict(trace.tb_frame.f_locals).values():
                    yield from texts(value)
            trace = trace.tb_next


def page_of(error: BaseException) -> str:
    """Return the variables on Django's debug page, of the frames of ours and Anymail's."""
    reporter = ExceptionReporter(HttpRequest(), type(error), error, error.__traceback__)
    return "".join(
        f"{name} = {pprint(value)}\n"
        for frame in reporter.get_traceback_frames()
        if frame.get("filename", "").startswith(OURS)
        for name, value in frame["vars"]
    )


def forms(value: str) -> list[object]:
    lazy_object = SimpleLazyObject(lambda: value)
    seen = SimpleLazyObject(lambda: value)
    str(seen)
    return [value, lazy_object, seen, lazystr(value), lazy(lambda: value, str)()]


def check(make: Callable[[], object]) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        make()
    assert not [text for text in shown(raised.value) if SECRET in text]
    assert SECRET not in page_of(raised.value)


BROKEN: dict[str, dict[str, Any]] = {
    "another option": {"port": 0},
    "a lazy option": {"port": SimpleLazyObject(lambda: 1 // 0)},
    "an option of Anymail": {"idna_encoder": "nope"},
    "an unknown option": {"prot": 465},
    "the pool": {"pool": {"max_size": 0}},
    "another secret": {"signing_secret": ["whsec 1"]},
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("number", range(5))
def test_a_token_is_in_no_frame_when_something_else_is_wrong(
    broken: str, number: int
) -> None:
    token, wrong = forms(SECRET)[number], BROKEN[broken]
    for name in ("api_token", "password"):
        check(lambda name=name: EmailBackend(**{name: token}, **wrong))  # type: ignore[misc]
        check(lambda name=name: EmailBackend(**wrong, **{name: token}))  # type: ignore[misc]
    options = {"api_token": token, **wrong}
    check(lambda: EmailBackend(alias="news", **options))
    for settings in (
        {"LETTERMINT_API_TOKEN": token},
        {"ANYMAIL_LETTERMINT_API_TOKEN": token},
        {"ANYMAIL": {"LETTERMINT_API_TOKEN": token, "MAILGUN_API_KEY": SECRET}},
        {"LETTERMINT_API_TOKEN": "lm_1", "LETTERMINT_SIGNING_SECRET": token},
        {"MAILERS": {"news": {"OPTIONS": options}}, "LETTERMINT_API_TOKEN": token},
    ):
        with override_settings(**settings):
            check(lambda: EmailBackend(**wrong))


@pytest.mark.parametrize("name", ["api_token", "password", "signing_secret"])
def test_a_refused_secret_is_in_no_frame(name: str) -> None:
    for form in forms(f"{SECRET} with spaces"):
        check(lambda form=form: EmailBackend(**{"api_token": "lm_1", name: form}))  # type: ignore[misc]
        with override_settings(
            LETTERMINT_API_TOKEN=form, LETTERMINT_SIGNING_SECRET=form
        ):
            check(EmailBackend)
            check(webhook_config)
    check(lambda: EmailBackend(**{"api_token": "lm_1", name: [[SECRET]]}))
    check(lambda: EmailBackend(**{"api_token": "lm_1", name: SECRET.encode()}))


@pytest.mark.parametrize("name", ["api_key", "token", "api_tokn", "use_tls", "colour"])
def test_a_token_under_a_wrong_name_is_in_no_frame(name: str) -> None:
    for form in forms(SECRET):
        check(lambda form=form: EmailBackend(**{name: form}))  # type: ignore[misc]
        check(lambda form=form: EmailBackend(api_token="lm_1", **{name: form}))  # type: ignore[misc]
        check(lambda form=form: queue_config({name: form}))  # type: ignore[misc]
    with override_settings(ANYMAIL={f"LETTERMINT_{name.upper()}": SECRET}):
        check(lambda: EmailBackend(api_token="lm_1"))


def test_one_refused_secret_shows_no_other() -> None:
    check(lambda: EmailBackend(api_token="to ken", signing_secret=SECRET))
    check(lambda: EmailBackend(api_token=SECRET, signing_secret="whsec 1"))
    check(lambda: EmailBackend(api_token=SECRET, password="pass word"))


def test_a_token_that_cannot_be_read_is_in_no_frame() -> None:
    def fails_for_now() -> str:
        answers.append("")
        if len(answers) <= 2:  # also when it is asked once more
            raise OSError("the vault is sealed")
        return SECRET

    for make in (lazy(fails_for_now, str), lambda: SimpleLazyObject(fails_for_now)):
        answers: list[str] = []
        check(lambda make=make: EmailBackend(api_token=make()))  # type: ignore[misc]
        answers = []
        check(
            lambda make=make: EmailBackend(  # type: ignore[misc]
                api_token=SECRET, signing_secret=[make()]
            )
        )


@pytest.mark.parametrize("broken", [{"ANYMAIL": 7}, {"ANYMAIL": "nope"}])
def test_a_keyword_is_in_no_frame_when_the_settings_cannot_be_read(
    broken: dict[str, object],
) -> None:
    for token in forms(SECRET):
        with override_settings(**broken):
            check(lambda token=token: EmailBackend(api_token=token))  # type: ignore[misc]
            check(lambda token=token: EmailBackend(password=token))  # type: ignore[misc]
            check(lambda token=token: queue_config({"token": token}))  # type: ignore[misc]
            check(lambda token=token: webhook_config({"signing_secret": token}))  # type: ignore[misc]
            check(lambda token=token: WebhookView.as_view(signing_secret=token))  # type: ignore[misc]
