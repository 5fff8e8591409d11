"""A relay that restarts while mail is sent to it, in real time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import ConnectFailed, LettermintError
from django_lettermint.results import Outcome
from tests.deadends import refused_port
from tests.sending import mail, mails, result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.mail import EmailMessage

    from django_lettermint.testing import Relay

pytestmark = pytest.mark.slow


def test_a_restart_of_three_seconds_within_a_list_loses_and_doubles_nothing(
    relay: Relay,
) -> None:
    messages = mails(300)
    restart = threading.Timer(3.0, relay.start)

    def stopping() -> Iterator[EmailMessage]:
        for number, each in enumerate(messages):
            if number == 200:
                relay.stop()
                restart.start()
            yield each

    with suppress(LettermintError):
        EmailBackend(**relay.options(idempotency=False)).send_messages(stopping())
    restart.join()
    outcomes = Counter(result(each).outcome for each in messages)
    assert outcomes[Outcome.NOT_SENT] == 0
    assert outcomes[Outcome.UNKNOWN] <= 5  # one on each connection
    copies = Counter(each.recipients[0] for each in relay.messages)
    assert set(copies.values()) == {1}
    assert len(copies) >= outcomes[Outcome.SENT]


def test_a_single_mail_outlives_a_restart_of_one_second(relay: Relay) -> None:
    sender = EmailBackend(**relay.options())
    relay.stop()
    restart = threading.Timer(1.0, relay.start)
    restart.start()
    assert sender.send_messages([mail()]) == 1
    restart.join()


def test_a_relay_that_refuses_connections_costs_a_single_mail_three_seconds() -> None:
    with refused_port() as port:
        sender = EmailBackend(
            api_token="t", host="127.0.0.1", port=port, security="tls"
        )
        began = time.monotonic()
        with pytest.raises(ConnectFailed):
            sender.send_messages([mail()])
        assert time.monotonic() - began < 3
