"""Messages whose delivery stayed unknown, repeated later from their frozen envelopes."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from django.core.mail import EmailMessage

from django_lettermint.backend import EmailBackend
from django_lettermint.envelope import Envelope
from django_lettermint.exceptions import DeliveryUnknown, LettermintInvalidMessage
from django_lettermint.results import Outcome

if TYPE_CHECKING:
    from django_lettermint.testing import Relay


def unknown(relay: Relay, **options: Any) -> DeliveryUnknown:
    """Send a message that the relay takes, but never confirms."""
    mail = EmailMessage("Hi", "Hello", "us@x.test", ["ann@x.test", "bob@x.test"])
    relay.drop_final_replies(100)
    with pytest.raises(DeliveryUnknown) as raised:
        EmailBackend(**relay.options(deadline=1, **options)).send_messages([mail])
    relay.drop_final_replies(0)
    return raised.value


@pytest.mark.parametrize("carried", ["json", "pickle"])
def test_another_process_can_repeat_it_and_delivers_it_once(
    relay: Relay, carried: str
) -> None:
    error = unknown(relay)
    assert error.repeatable
    if carried == "json":
        text = json.dumps([each.to_json() for each in error.envelopes])
        envelopes = [Envelope.from_json(form) for form in json.loads(text)]
    else:
        envelopes = pickle.loads(pickle.dumps(error)).envelopes
    result = EmailBackend(**relay.options()).repeat(envelopes)
    assert result.outcome is Outcome.SENT
    assert {each.status for each in result.recipients.values()} == {"queued"}
    assert error.result
    assert result.message_id == error.result.message_id
    assert len(relay.messages) == 1


def test_a_repeat_that_is_refused_leaves_it_unknown(relay: Relay) -> None:
    error = unknown(relay)
    relay.refuse("us@x.test", verb="MAIL")
    with pytest.raises(DeliveryUnknown, match="a repeat was answered by 550") as raised:
        EmailBackend(**relay.options()).repeat(error.envelopes)
    assert raised.value.result
    assert raised.value.result.outcome is Outcome.UNKNOWN


def test_what_could_be_delivered_twice_is_not_repeated(relay: Relay) -> None:
    error = unknown(relay, idempotency=False)
    assert not error.repeatable
    sent = relay.statistics.messages
    with pytest.raises(LettermintInvalidMessage, match="delivered twice"):
        EmailBackend(**relay.options()).repeat(error.envelopes)
    assert relay.statistics.messages == sent
