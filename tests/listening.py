"""The signals that fire, as their receivers get them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anymail.signals import post_send

from django_lettermint.signals import message_failed, message_sent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.dispatch import Signal

NAMES = {
    id(post_send): "post_send",
    id(message_sent): "message_sent",
    id(message_failed): "message_failed",
}


@contextmanager
def receiver(signal: Signal, function: Any) -> Iterator[None]:
    signal.connect(function, weak=False)
    try:
        yield
    finally:
        signal.disconnect(function)


@contextmanager
def listening() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Collect the signals by name, with their arguments."""
    received: list[tuple[str, dict[str, Any]]] = []

    def receive(signal: Signal, **arguments: Any) -> None:
        received.append((NAMES[id(signal)], arguments))

    with (
        receiver(post_send, receive),
        receiver(message_sent, receive),
        receiver(message_failed, receive),
    ):
        yield received


def names(received: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in received]
