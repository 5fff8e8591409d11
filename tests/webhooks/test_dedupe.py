"""Receivers run once for each event, however often it is delivered."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def use_cache(settings: Any, backend: type[LocMemCache]) -> None:
    path = f"{backend.__module__}.{backend.__qualname__}"
    settings.CACHES = {"default": settings.CACHES["default"] | {"BACKEND": path}}


def test_a_repeated_delivery_is_accepted_without_a_signal(receiver: Receiver) -> None:
    other = SENT | {"id": "other"}
    assert statuses(SENT, other) == [200, 200]
    assert post(SENT, age=5).status_code == 200

    assert [event.event_id for event in receiver.events] == [SENT["id"], "other"]


def test_a_forged_request_does_not_use_up_an_id(receiver: Receiver) -> None:
    post(SENT, "whsec_other")

    assert post(SENT).status_code == 200
    assert len(receiver.events) == 1


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


def test_a_copy_that_arrives_while_the_receivers_run_is_answered_503(
    receiver: Receiver,
) -> None:
    copies: list[Any] = []
    receiver.action = lambda: copies.append(post(SENT))

    assert post(SENT).status_code == 200

    assert [copy.status_code for copy in copies] == [503]
    assert copies[0]["Retry-After"] == "60"
    assert len(receiver.events) == 1


class MissesTogether(LocMemCache):
    """Makes all threads that read a missing key wait for each other."""

    everyone = threading.Barrier(8)

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        found = super().get(key, default, version)
        if found is None:
            self.everyone.wait(timeout=30)
        return found


def test_of_copies_at_the_same_time_one_runs_the_receivers(
    settings: Any, receiver: Receiver
) -> None:
    use_cache(settings, MissesTogether)
    together = threading.Barrier(8)

    def deliver(_: int) -> int:
        together.wait(timeout=30)
        return post(SENT).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(deliver, range(8)))
    assert len(receiver.events) == 1
    assert {200} <= answers <= {200, 503}


class NotesTimeouts(LocMemCache):
    """Notes for how long keys are stored."""

    noted: list[float | None]

    def add(self, key: Any, value: Any, timeout: Any = 0, version: Any = None) -> bool:
        type(self).noted = [timeout]
        return super().add(key, value, timeout, version)

    def set(self, key: Any, value: Any, timeout: Any = 0, version: Any = None) -> None:
        self.noted.append(timeout)
        super().set(key, value, timeout, version)


def test_an_event_is_locked_for_minutes_and_remembered_for_three_days(
    settings: Any, receiver: Receiver
) -> None:
    use_cache(settings, NotesTimeouts)
    post(SENT)

    assert NotesTimeouts.noted == [5 * 60, 3 * 24 * 3600]


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

    assert post(SENT).status_code == 200
    assert len(receiver.events) == 2


@pytest.mark.usefixtures("_atomic_requests")
def test_an_event_whose_request_is_committed_is_done(receiver: Receiver) -> None:
    assert statuses(SENT, SENT) == [200, 200]


@pytest.mark.django_db
def test_a_test_that_never_commits_sees_an_event_done(receiver: Receiver) -> None:
    assert statuses(SENT, SENT) == [200, 200]
    assert len(receiver.events) == 1
