"""What the connections of a pool remember of their relay's addresses and of pipelining."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django_lettermint.smtp.relay_state import CAUTION_SECONDS, RelayState

if TYPE_CHECKING:
    from django_lettermint.smtp.dns import AddressInfo


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def info(host: str) -> AddressInfo:
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 465)


ONE, TWO, THREE = info("192.0.2.1"), info("192.0.2.2"), info("192.0.2.3")
ALL = [ONE, TWO, THREE]


def test_addresses_keep_the_order_of_the_look_up_at_first() -> None:
    assert RelayState(Clock()).in_order(ALL) == ALL


def test_an_address_that_failed_comes_after_those_that_did_not() -> None:
    relay = RelayState(Clock())
    relay.note_failure(ONE)
    assert relay.in_order(ALL) == [TWO, THREE, ONE]


def test_the_address_that_failed_first_comes_before_those_that_failed_later() -> None:
    relay = RelayState(Clock())
    for each in (TWO, ONE, THREE):
        relay.note_failure(each)
    assert relay.in_order(ALL) == [TWO, ONE, THREE]


def test_the_address_that_worked_last_comes_first() -> None:
    relay = RelayState(Clock())
    relay.note_success(ONE)
    relay.note_success(THREE)
    assert relay.in_order(ALL) == [THREE, ONE, TWO]


def test_the_address_of_a_session_that_was_lost_unused_comes_last() -> None:
    relay = RelayState(Clock())
    relay.note_success(ONE)
    relay.note_loss()
    assert relay.in_order(ALL) == [TWO, THREE, ONE]
    relay.note_success(TWO)
    assert relay.in_order(ALL) == [TWO, THREE, ONE]


def test_a_success_makes_up_for_a_failure() -> None:
    relay = RelayState(Clock())
    relay.note_failure(ONE)
    relay.note_success(ONE)
    relay.note_success(TWO)
    assert relay.in_order(ALL) == [TWO, ONE, THREE]


def test_a_failure_ends_the_preference_for_an_address() -> None:
    relay = RelayState(Clock())
    relay.note_success(TWO)
    relay.note_failure(TWO)
    assert relay.in_order(ALL) == [ONE, THREE, TWO]


def test_a_failure_elsewhere_leaves_the_preferred_address() -> None:
    relay = RelayState(Clock())
    relay.note_success(TWO)
    relay.note_failure(ONE)
    assert relay.in_order(ALL) == [TWO, THREE, ONE]


def test_pipelining_behind_a_message_is_allowed_at_first() -> None:
    assert RelayState().pipelines_past_data


def test_a_loss_while_pipelining_ends_it_for_a_while() -> None:
    clock = Clock()
    relay = RelayState(clock)
    relay.lost_while_pipelining()
    assert not relay.pipelines_past_data
    clock.now += CAUTION_SECONDS - 3
    assert not relay.pipelines_past_data
    clock.now += 3
    assert relay.pipelines_past_data


def test_a_refusal_of_pipelining_ends_it_for_good() -> None:
    clock = Clock()
    relay = RelayState(clock)
    relay.refused_pipelining_past_data()
    relay.lost_while_pipelining()
    clock.now += 1e9
    assert not relay.pipelines_past_data
