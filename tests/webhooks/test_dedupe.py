"""Receivers run once for each event, however often it is delivered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.db import connection, transaction

from django_lettermint.webhooks import LettermintTrackingWebhookView
from tests.webhooks.payloads import payload
from tests.webhooks.posting import Receiver, configure, post, request

SENT = payload("message.sent")


def statuses(*contents: object) -> list[int]:
    return [post(content).status_code for content in contents]


def test_a_repeated_delivery_is_accepted_without_a_signal(receiver: Receiver) -> None:
    post(SENT, "whsec_other")  # a forged request does not use up an id
    assert statuses(SENT, SENT | {"id": "other"}) == [200, 200]
    assert post(SENT, age=5).status_code == 200

    assert [event.event_id for event in receiver.events] == [SENT["id"], "other"]


def test_deduplication_can_be_switched_off(settings: Any, receiver: Receiver) -> None:
    configure(settings, webhook_dedupe=False)

    assert statuses(SENT, SENT) == [200, 200]
    assert len(receiver.events) == 2


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("action", "error"), [(fail, ZeroDivisionError), (sys.exit, SystemExit)]
)
def test_a_failing_receiver_gets_the_event_again(
    action: Callable[[], object], error: type[BaseException], receiver: Receiver
) -> None:
    receiver.action = action
    with pytest.raises(error):
        LettermintTrackingWebhookView.as_view()(request())

    receiver.action = lambda: None
    assert statuses(SENT, SENT) == [200, 200]
    assert len(receiver.events) == 2


def test_a_copy_that_arrives_meanwhile_is_answered_503(receiver: Receiver) -> None:
    copies: list[Any] = []
    receiver.action = lambda: copies.append(post(SENT))

    assert post(SENT).status_code == 200

    assert [copy.status_code for copy in copies] == [503]
    assert copies[0]["Retry-After"] == "60"
    assert len(receiver.events) == 1


class NotesWrites(LocMemCache):
    """Notes how keys are stored, and for how long."""

    noted: list[tuple[str, float]]

    def add(self, key: Any, value: Any, timeout: Any = 0, version: Any = None) -> bool:
        type(self).noted = [("add", timeout)]
        return super().add(key, value, timeout, version)

    def set(self, key: Any, value: Any, timeout: Any = 0, version: Any = None) -> None:
        self.noted.append(("set", timeout))
        super().set(key, value, timeout, version)


def test_an_event_is_locked_for_minutes_and_remembered_for_three_days(
    settings: Any, receiver: Receiver
) -> None:
    path = f"{__name__}.{NotesWrites.__qualname__}"
    settings.CACHES = {"default": settings.CACHES["default"] | {"BACKEND": path}}
    post(SENT)

    # By add(), which is atomic: of copies at the same time, one runs the receivers.
    assert NotesWrites.noted == [("add", 5 * 60), ("set", 3 * 24 * 3600)]


@pytest.fixture
def _atomic_requests(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", value=True)


@pytest.mark.usefixtures("_atomic_requests")
def test_an_event_whose_request_is_rolled_back_is_not_done(receiver: Receiver) -> None:
    receiver.action = partial(transaction.set_rollback, rollback=True)
    assert post(SENT).status_code == 200
    receiver.action = lambda: None
    assert post(SENT).status_code == 503
    cache.clear()  # as the lock expires

    assert statuses(SENT, SENT) == [200, 200]
    assert len(receiver.events) == 2


@pytest.mark.django_db
def test_a_test_that_never_commits_sees_an_event_done(receiver: Receiver) -> None:
    assert statuses(SENT, SENT) == [200, 200]
    assert len(receiver.events) == 1
