"""What receivers of signals hear."""

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
    heard: list[tuple[str, dict[str, Any]]] = []

    def hear(signal: Signal, **arguments: Any) -> None:
        heard.append((NAMES[id(signal)], arguments))

    with (
        receiver(post_send, hear),
        receiver(message_sent, hear),
        receiver(message_failed, hear),
    ):
        yield heard


def names(heard: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in heard]
