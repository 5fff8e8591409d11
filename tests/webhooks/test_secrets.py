"""Where a view may hold the secret of its webhook, and that it is shown nowhere."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailConfigurationError
from django.utils.functional import SimpleLazyObject, lazystr

from django_lettermint.conf import Secret
from django_lettermint.webhooks import LettermintTrackingWebhookView as View
from tests.exposure import strings_of
from tests.webhooks.posting import SECRET, Receiver, configure, request

if TYPE_CHECKING:
    from django.http import HttpRequest

Place = Callable[[object], Callable[..., Any]]


def of_url(secret: object) -> Callable[..., Any]:
    return View.as_view(signing_secret=secret)


def of_class(secret: object) -> Callable[..., Any]:
    class Own(View):
        signing_secret = secret

    return Own.as_view()


def of_property(secret: object) -> Callable[..., Any]:
    class Own(View):
        signing_secret = property(lambda _: secret)

    return Own.as_view()


def of_setup(secret: object) -> Callable[..., Any]:
    class Own(View):
        def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
            super().setup(request, *args, **kwargs)
            self.signing_secret = secret

    return Own.as_view()


ALL = [of_url, of_class, of_property, of_setup]
PLACES = pytest.mark.parametrize("place", ALL)


@PLACES
@pytest.mark.parametrize(
    "own",
    [
        "whsec_own",
        ("whsec_older", "whsec_own"),
        Secret("whsec_own"),
        SimpleLazyObject(lambda: "whsec_own"),
        [lazystr("whsec_own"), "whsec_older"],
    ],
    ids=["text", "tuple", "wrapped", "lazy", "lazy in a list"],
)
def test_a_view_may_hold_its_secret_in_any_place(place: Place, own: object) -> None:
    view = place(own)

    assert view(request("whsec_own")).status_code == 200
    assert view(request(SECRET)).status_code == 400


@pytest.mark.parametrize(
    ("place", "own"),
    [
        *product(ALL, ["", []]),
        *product(
            [of_url, of_property, of_setup], [None, SimpleLazyObject(lambda: None)]
        ),
    ],
)
def test_a_view_with_an_empty_secret_accepts_nothing(place: Place, own: object) -> None:
    for secret in (SECRET, ""):
        assert place(own)(request(secret)).status_code == 403


def test_a_class_without_a_secret_uses_that_of_the_settings() -> None:
    assert of_class(None)(request(SECRET)).status_code == 200


@PLACES
@pytest.mark.parametrize("own", [7, ["whsec_own", ""], "two words"], ids=repr)
def test_an_odd_secret_is_an_error(place: Place, own: object) -> None:
    with pytest.raises(AnymailConfigurationError, match="signing_secret"):
        place(own)(request(SECRET))


@PLACES
@pytest.mark.parametrize("dedupe", [True, "broken"])
def test_the_secret_of_a_view_is_in_no_traceback_frame(
    place: Place, dedupe: object, settings: Any, receiver: Receiver
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    view = place("whsec_own")
    configure(settings, webhook_dedupe=dedupe)
    receiver.action = fail
    with pytest.raises((ZeroDivisionError, AnymailConfigurationError)) as caught:
        view(request("whsec_own"))

    for text in (*strings_of(caught.value), repr(vars(view))):
        assert "whsec_own" not in text
