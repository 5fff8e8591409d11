"""The webhook events that the inbox can post, and what to do about an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from django_lettermint.testing.webhooks import WebhookDelivery, WebhookEvent, make_event

from .reading import URL, read_parts

if TYPE_CHECKING:
    from django_lettermint.testing.records import ReceivedMessage

#: Anymail's names of the events, and Lettermint's.
EVENTS: Mapping[str, str] = {
    "delivered": "message.delivered",
    "bounced": "message.hard_bounced",
    "deferred": "message.soft_bounced",
    "complained": "message.spam_complaint",
    "opened": "message.opened",
    "clicked": "message.clicked",
    "unsubscribed": "message.unsubscribed",
}
NAMES = {event: name for name, event in EVENTS.items()}

_HREF = re.compile(r"href\s*=\s*[\"']?(https?://[^\"'\s<>]+)", re.IGNORECASE)

_SIGNATURE = (
    "The project refuses the signature: LETTERMINT_SIGNING_SECRET in its settings "
    "must be the secret that this relay signs with."
)
_NEXT_STEPS = {
    400: _SIGNATURE,
    403: _SIGNATURE,
    404: "The project has no such URL: add "
    'path("anymail/", include("django_lettermint.urls")) to its urls.py, or give the '
    "relay the right address with --webhook.",
    405: "Something else answers at this URL: the events of sent mail go to "
    "…/lettermint/tracking/.",
    503: "Another copy of this event is being worked on: post it again in a moment.",
}
_REDIRECT = (
    "The URL redirects, and a webhook does not follow: give the relay the final address "
    "with --webhook (https, a slash at the end)."
)
_ERROR = (
    "A receiver in the project raised an exception: its console shows the traceback."
)
_ODD = "No webhook view of this package answers like this: look at --webhook."
_SILENCE = (
    "%s. Is the project running? Start it with `python manage.py runserver`, or give the "
    "relay its address with --webhook."
)


def new_event(message: ReceivedMessage, name: str, recipient: str) -> WebhookEvent:
    """Return an event by Anymail's name; KeyError for a name that is not in EVENTS."""
    event = EVENTS[name]
    if name == "clicked" and (link := _first_link(message)):
        return make_event(message, event, recipient, destination_url=link)
    return make_event(message, event, recipient)


def _first_link(message: ReceivedMessage) -> str:
    parts = read_parts(message)
    html, text = (part.text if part else "" for part in (parts.html, parts.text))
    if found := _HREF.search(html):
        return found[1]
    found = URL.search(text)
    return found[0] if found else ""


def next_step(delivery: WebhookDelivery) -> str:
    """Return what to do about the answer to a webhook; empty for 2xx."""
    status = delivery.status
    if status is None:
        return _SILENCE % delivery.error
    if status in _NEXT_STEPS:
        return _NEXT_STEPS[status]
    return {2: "", 3: _REDIRECT, 5: _ERROR}.get(status // 100, _ODD)
