"""What the connections of a pool know about their relay's addresses and pipelining."""

from __future__ import annotations

import socket

import pytest

from django_lettermint.smtp.relay_state import CAUTION_SECONDS, RelayState


class Clock:
    """A clock that advances by a second each time."""

    now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize(
    ("events", "order"),
    [
        ("", "123"),
        ("failure 1", "231"),
        ("failure 2, failure 1, failure 3", "213"),
        ("success 1, success 3", "312"),
        # A failure ends the preference for its own address only.
        ("success 2, failure 2", "132"),
        ("success 2, failure 1", "231"),
        # A success ends what a failure before it meant.
        ("failure 1, success 1, success 2", "213"),
        # The latest session was lost unused.
        ("success 1, loss", "231"),
        ("success 1, loss, success 2", "231"),
    ],
)
def test_addresses_that_work_come_first(events: str, order: str) -> None:
    infos = {
        number: (socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"192.0.2.{number}", 465))
        for number in "123"
    }
    relay = RelayState(Clock())
    for event in filter(None, events.split(", ")):
        kind, _, number = event.partition(" ")
        if kind == "loss":
            relay.note_loss()
        else:
            getattr(relay, f"note_{kind}")(infos[number])
    assert relay.in_order(infos.values()) == [infos[number] for number in order]


def test_a_loss_while_pipelining_ends_it_for_a_while() -> None:
    clock = Clock()
    relay = RelayState(clock)
    assert relay.pipelines_past_data
    relay.lost_while_pipelining()
    clock.now += CAUTION_SECONDS - 2
    assert [relay.pipelines_past_data for _ in range(2)] == [False, True]


def test_a_refusal_of_pipelining_ends_it_for_the_life_of_the_pool() -> None:
    clock = Clock()
    relay = RelayState(clock)
    relay.refused_pipelining_past_data()
    relay.lost_while_pipelining()
    clock.now += 1e9
    assert not relay.pipelines_past_data
