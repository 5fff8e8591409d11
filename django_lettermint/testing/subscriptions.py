"""Webhooks from a relay: on demand, or by themselves after each message."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .webhooks import WebhookDelivery, check_url, events_for, post_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .ledger import Ledger
    from .records import ReceivedMessage


@dataclass(frozen=True, slots=True)
class _Subscription:
    put: Callable[[ReceivedMessage | None], None]
    thread: threading.Thread


class Webhooks:
    """The webhooks of one relay, and a record of what was posted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._changed = threading.Condition()
        self._deliveries: list[WebhookDelivery] = []
        self._stopping = threading.Event()
        self._subscriptions: list[_Subscription] = []

    @property
    def deliveries(self) -> list[WebhookDelivery]:
        """All attempts so far, in the order in which they were answered."""
        with self._changed:
            return list(self._deliveries)

    def post(
        self,
        url: str,
        secret: str,
        *,
        messages: Iterable[ReceivedMessage] | None = None,
        attempts: int = 1,
        wrong_signature: bool = False,
        timeout: float = 5.0,
    ) -> list[WebhookDelivery]:
        """Post the events of `messages`, by default of all that the relay keeps.

        Each event is posted `attempts` times with the same id, whatever the answer.
        """
        if messages is None:
            with self._ledger.changed:
                messages = tuple(self._ledger.messages)
        done = []
        for message in messages:
            for event in events_for(message):
                for attempt in range(1, attempts + 1):
                    delivery = post_event(
                        url,
                        event,
                        secret,
                        attempt=attempt,
                        wrong_signature=wrong_signature,
                        timeout=timeout,
                    )
                    self._record(delivery)
                    done.append(delivery)
        return done

    def subscribe(
        self, url: str, secret: str, *, attempts: int = 1, timeout: float = 5.0
    ) -> None:
        """Post the events of each message from now on, until the relay stops."""
        check_url(url)
        inbox: queue.SimpleQueue[ReceivedMessage | None] = queue.SimpleQueue()

        def work() -> None:
            while (message := inbox.get()) is not None and not self._stopping.is_set():
                self.post(
                    url, secret, messages=[message], attempts=attempts, timeout=timeout
                )

        thread = threading.Thread(target=work, name="lettermint-webhooks", daemon=True)
        thread.start()
        self._ledger.observers.append(inbox.put)
        self._subscriptions.append(_Subscription(inbox.put, thread))

    def wait_for(self, count: int, timeout: float = 5.0) -> list[WebhookDelivery]:
        """Return the deliveries as soon as there are `count`; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self._deliveries) >= count, timeout
            ):
                raise TimeoutError(
                    f"{len(self._deliveries)} of {count} webhooks after {timeout} s"
                )
            return list(self._deliveries)

    def stop(self, timeout: float) -> None:
        """End all subscriptions; what waits to be posted is dropped."""
        self._stopping.set()
        for subscription in self._subscriptions:
            self._ledger.observers.remove(subscription.put)
            subscription.put(None)
        while self._subscriptions:
            self._subscriptions.pop().thread.join(timeout)
        self._stopping.clear()

    def _record(self, delivery: WebhookDelivery) -> None:
        with self._changed:
            self._deliveries.append(delivery)
            self._changed.notify_all()
