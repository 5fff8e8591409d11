"""Send a few mails to a local relay and show what it read; with a token, send to Lettermint.

    python example_project/demo.py
    LETTERMINT_API_TOKEN=… LETTERMINT_FROM_EMAIL=you@your-domain python example_project/demo.py

The exit code is 1 if a mail does not end with the signal that is expected.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import django
from anymail.message import attach_inline_image
from django.core.mail import EmailMessage
from django.core.management import CommandError, call_command
from django.dispatch import receiver

from django_lettermint.exceptions import LettermintError
from django_lettermint.message import LettermintMessage
from django_lettermint.pool import get_stats
from django_lettermint.results import SendResult
from django_lettermint.signals import message_failed, message_sent
from django_lettermint.testing import ReceivedMessage, Relay

#: Lettermint accepts mail to its test addresses, and reports the bounce by webhook.
REFUSED, BOUNCING = "nobody@testing.lettermint.co", "hardbounce@testing.lettermint.co"
ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A mail, and the signal that is expected for it."""

    title: str
    message: EmailMessage
    signal: str = "message_sent"


#: The signals since the last mail, with their results.
SIGNALS: list[tuple[str, SendResult]] = []


@receiver(message_sent)
def note_sent(result: SendResult, **kwargs: Any) -> None:
    SIGNALS.append(("message_sent", result))


@receiver(message_failed)
def note_failed(result: SendResult, **kwargs: Any) -> None:
    SIGNALS.append(("message_failed", result))


def main() -> int:
    """Run the demonstration; return the exit code."""
    with ExitStack() as stack:
        relay = None
        if os.environ.get("LETTERMINT_API_TOKEN"):
            heading("Sending to the test addresses of Lettermint")
        else:
            relay = stack.enter_context(Relay())
            relay.refuse(REFUSED)
            use(relay)
            heading(f"Sending to a local relay on port {relay.port('tls')}, with TLS")
        set_up_django()
        return demonstrate(relay)


def use(relay: Relay) -> None:
    """Pass the relay's address to the settings, the only difference from Lettermint."""
    for name, value in relay.options().items():
        os.environ[f"LETTERMINT_{name.upper()}"] = str(value)


def set_up_django() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    # The example stores each mail; here, in memory.
    os.environ["EXAMPLE_DATABASE"] = ":memory:"
    django.setup()
    call_command("migrate", verbosity=0)


def demonstrate(relay: Relay | None) -> int:
    heading("manage.py test_lettermint --count 5")
    try:
        call_command("test_lettermint", "--count", "5")
    except CommandError as error:
        print(error)
        return 1
    results = [run(step, relay) for step in steps(refusing=relay is not None)]
    show_statistics(relay)
    print("\nAll as expected." if all(results) else "\nNot as expected.")
    return 0 if all(results) else 1


def steps(*, refusing: bool) -> Iterator[Step]:
    """Yield the mails; `refusing` says that the relay refuses a recipient at RCPT."""
    to = ["Ada <ok@testing.lettermint.co>"]
    yield Step(
        title="A plain mail, with nothing but Django",
        message=EmailMessage("Hello", "It works.", to=to),
    )
    yield Step(
        title="A mail with route, tag and metadata",
        message=LettermintMessage(
            "Your order",
            "It is on its way.",
            to=to,
            route=os.environ.get("LETTERMINT_ROUTE", "outgoing"),
            tag="order shipped",
            metadata={"order_id": 4711, "UserID": "ada", "city": "Besançon"},
        ),
    )
    yield Step(
        title="An HTML mail with an attachment and an inline image", message=html(to)
    )
    to = [REFUSED if refusing else BOUNCING]
    yield Step(
        title="A mail to an address that is refused, or will bounce",
        message=EmailMessage("Anybody there?", "Hello?", to=to),
        signal="message_failed" if refusing else "message_sent",
    )


def html(to: list[str]) -> EmailMessage:
    message = LettermintMessage("Your invoice", "Please find it attached.", to=to)
    logo = attach_inline_image(message, ONE_PIXEL, "logo.png")
    message.attach_alternative(
        f'<p><img src="cid:{logo}" alt="Logo"> Please find it attached.</p>',
        "text/html",
    )
    message.attach("invoice.csv", "article,price\nmint,1.50\n", "text/csv")
    return message


def run(step: Step, relay: Relay | None) -> bool:
    """Send one mail and show its outcome; return whether that is what was expected."""
    heading(step.title)
    SIGNALS.clear()
    before = len(relay.messages) if relay else 0
    try:
        step.message.send()
    except LettermintError as error:
        print(f"  raised      {type(error).__name__}: {error}")
    for name, result in SIGNALS:
        print(f"  signal      {name}: {described(result)}")
    for mail in relay.messages[before:] if relay else []:
        show(mail)
    fired = [name for name, _ in SIGNALS]
    if fired != [step.signal]:
        print(f"  UNEXPECTED  signals {fired} instead of {[step.signal]}")
    return fired == [step.signal]


def described(result: SendResult) -> str:
    connection = "reused" if result.connection_reused else "new"
    return (
        f"{result.outcome.value} at {result.phase.value}, "
        f"{result.code} {result.text!r}, {result.elapsed * 1000:.0f} ms, "
        f"{connection} connection"
    )


def show(mail: ReceivedMessage) -> None:
    """Print what the relay read."""
    print(f"  relay read  from {mail.mail_from} to {', '.join(mail.recipients)}")
    print(f"              route {mail.route}, tag {mail.tag}")
    for key, value in mail.metadata.items():
        print(f"              metadata {key} = {value}")
    for name, value in mail.headers.items():
        print(f"              | {name}: {value}")
    for part in mail.mime.walk():
        if not part.is_multipart():
            name = part.get_filename() or "body"
            print(f"              part {part.get_content_type()} ({name})")


def show_statistics(relay: Relay | None) -> None:
    heading("Pool statistics: messages sent, connections opened")
    for pool in get_stats():
        print(
            f"  pool        messages {pool['messages']}, connections opened "
            f"{pool['opened']}, reused {pool['reused']} times"
        )
    if relay:
        statistics = relay.statistics
        print(
            f"  relay       messages {statistics.messages}, connections "
            f"{statistics.connections}, round trips {statistics.round_trips}"
        )


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


if __name__ == "__main__":
    sys.exit(main())
