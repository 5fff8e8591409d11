"""Lettermint on your machine: `manage.py lettermint_relay`, without Django as well.

    python -m django_lettermint.testing

Serves until it is interrupted, and prints what arrives.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

from .records import ReceivedMessage, Refusal
from .webhooks import WebhookDelivery, check_url

SMTP_PORT = 1025
INBOX_PORT = 8025
SECRET_VARIABLE = "LETTERMINT_SIGNING_SECRET"  # noqa: S105 - a name
CA_FOLDER = Path("~/.lettermint-relay")

DESCRIPTION = (
    "Run a local relay that reads mail as Lettermint does. It prints each mail, shows it "
    "in an inbox in the browser, and posts its webhooks. Nothing leaves this machine."
)

#: What is printed, or None at the end.
_Record: TypeAlias = ReceivedMessage | Refusal | WebhookDelivery | None
_REFUSED = {4: "4.2.1 Mailbox is not available now", 5: "5.1.1 No such mailbox"}
#: Characters of a line; more is cut.
_WIDTH = 300


class CannotServe(Exception):
    """The relay cannot be started; the text says why, and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    port = "the relay's port; 0: any (default: %(default)s)"
    add("--port", type=_port, default=SMTP_PORT, metavar="PORT", help=port)
    inbox = "the inbox's port; 0: any (default: %(default)s)"
    add("--inbox-port", type=_port, default=INBOX_PORT, metavar="PORT", help=inbox)
    add("--no-inbox", action="store_true", help="print mail in the terminal only")
    add("--tls", action="store_true", help="serve TLS, as Lettermint does")
    folder = "where --tls keeps its certificates (default: %(default)s)"
    add("--ca-folder", default=str(CA_FOLDER), metavar="FOLDER", help=folder)
    hook = "post the events of each mail to this URL of your project"
    add("--webhook", type=_url, metavar="URL", help=hook)
    secret = f"the secret that signs webhooks; better set {SECRET_VARIABLE} in the environment"
    add("--secret", metavar="SECRET", help=secret)
    add("--save", metavar="FOLDER", help="write each mail there, as an .eml file")
    refuse = "refuse this recipient with 550, or with CODE; may be repeated"
    add(
        "--refuse",
        type=_refused,
        action="append",
        default=[],
        metavar="ADDRESS[=CODE]",
        help=refuse,
    )
    delay = "wait this long before the reply to each mail (default: 0)"
    add("--reply-delay", type=_seconds, default=0.0, metavar="SECONDS", help=delay)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


def _url(text: str) -> str:
    try:
        check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _refused(text: str) -> tuple[str, int]:
    # An address may have "=" before its "@".
    address, equals, code = text.rpartition("=")
    if "@" in code or not equals:
        address, code = text, "550"
    if "@" not in address or not (code.isdecimal() and 400 <= int(code) <= 599):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not ADDRESS or ADDRESS=CODE with a code from 400 to 599"
        )
    return address, int(code)


def serve(options: argparse.Namespace, write: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM; `write` prints a text and a line end.

    Raises CannotServe.
    """
    try:
        from .inbox import Inbox
        from .relay import Relay
    except ModuleNotFoundError as error:
        raise CannotServe(
            f"{error}: pip install 'django-lettermint-smtp[testing]'"
        ) from error
    secret = options.secret or os.environ.get(SECRET_VARIABLE, "")
    if options.webhook and not secret:
        raise CannotServe(
            f"--webhook needs a secret: set {SECRET_VARIABLE} in the environment of this "
            "command, and the same one in your settings"
        )
    security = "tls" if options.tls else "plaintext"
    relay = Relay(
        reply_delay=options.reply_delay,
        # The inbox keeps what it shows, within limits.
        keep_messages=False,
        ports={security: options.port},
        ca_folder=Path(options.ca_folder).expanduser() if options.tls else None,
    )
    for address, code in options.refuse:
        relay.refuse(address, code, _REFUSED[code // 100])
    records: queue.SimpleQueue[_Record] = queue.SimpleQueue()
    with ExitStack() as stack:
        stack.enter_context(_until_interrupted(records))
        with _explained("--port", options.port):
            stack.enter_context(relay)
        text = settings_text(relay.options(security), signed=bool(options.webhook))
        lines = [f"Put into settings.py:\n\n{text}", ""]
        if options.webhook:
            relay.webhooks.subscribe(options.webhook, secret, on_delivery=records.put)
        save = _folder(options.save) if options.save else None
        relay.add_listener(records.put)
        if not options.no_inbox:
            inbox = Inbox(
                relay,
                port=options.inbox_port,
                webhook_url=options.webhook,
                webhook_secret=secret,
            )
            with _explained("--inbox-port", options.inbox_port):
                stack.enter_context(inbox)
            lines.append(f"Inbox: {inbox.url}")
        lines.append("Waiting for mail. Stop with Ctrl-C.")
        for line in lines:
            write(line)
        while (record := _next(records)) is not None:
            lines = list(describe(record))
            if save and isinstance(record, ReceivedMessage):
                lines.append(_saved(record, save))
            write("\n".join(map(_printable, lines)))


def _next(records: queue.SimpleQueue[_Record]) -> _Record:
    while True:
        # A signal that comes just before the wait does not end it, so none is long.
        with suppress(queue.Empty):
            return records.get(timeout=0.5)


@contextmanager
def _until_interrupted(records: queue.SimpleQueue[_Record]) -> Iterator[None]:
    """Have the signals that end a program put None into the queue instead."""
    in_main = threading.current_thread() is threading.main_thread()
    # Other threads may set no handlers.
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = [signal.signal(each, lambda *_: records.put(None)) for each in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _explained(option: str, port: int) -> Iterator[None]:
    """Turn OSError into CannotServe, which names the option to change."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotServe(
                f"port {port} of 127.0.0.1 is in use, maybe by another relay or mail "
                f"catcher: stop that, or choose another port with {option}"
            ) from error
        where = f"{error.filename}: " if error.filename else ""
        raise CannotServe(
            f"cannot start ({where}{error.strerror or error}): choose another port with "
            f"{option}, or another folder with --ca-folder"
        ) from error


def settings_text(options: Mapping[str, object], *, signed: bool = False) -> str:
    """Return Django settings with these options, to be copied.

    `signed`: with the secret of webhooks, from the environment.
    """
    from django import VERSION

    backend = '"django_lettermint.backend.EmailBackend"'
    lines = [f"EMAIL_BACKEND = {backend}"]
    if VERSION >= (6, 1):
        lines = ["MAILERS = {", f'    "default": {{"BACKEND": {backend}}},', "}"]
    for name, value in options.items():
        literal = json.dumps(value) if isinstance(value, str) else repr(value)
        lines.append(f"LETTERMINT_{name.upper()} = {literal}")
    if signed:
        lines.insert(0, "import os")
        lines.append(f'{SECRET_VARIABLE} = os.environ["{SECRET_VARIABLE}"]')
    return "\n".join(lines)


def describe(record: ReceivedMessage | Refusal | WebhookDelivery) -> Iterator[str]:
    """Yield the lines that describe a record."""
    if isinstance(record, WebhookDelivery):
        data = record.event.data
        about = data.get("recipient", "all recipients")
        answer = record.status or f"no answer ({record.error}); does your site run?"
        yield f"          webhook {record.event.event} for {about}: {answer}"
        return
    moment = time.strftime("%H:%M:%S", time.localtime(record.received_at))
    subject = record.headers["Subject"] or "(no subject)"
    if isinstance(record, Refusal):
        what = " ".join(filter(None, [record.command, record.address]))
        yield f"{moment}  REFUSED {what}: {record.code} {record.text}"
        if record.command == "AUTH":
            yield "          use the token of the settings above"
        fields = {"subject": subject if record.content else None}
    else:
        yield f"{moment}  {subject}"
        metadata = [f"{key}={value}" for key, value in record.metadata.items()]
        fields = {
            "route": record.route,
            "tag": record.tag,
            "metadata": ", ".join(metadata),
        }
    addresses = {"from": record.mail_from, "to": ", ".join(record.recipients)}
    for name, value in (addresses | fields).items():
        if value:
            yield f"          {name + ':':10}{value}"


def _printable(line: str) -> str:
    """Return a line that any terminal can show, and that does nothing to it."""
    shown = line if len(line) <= _WIDTH else f"{line[:_WIDTH]}..."
    clean = "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in shown
    )
    encoding = sys.stdout.encoding or "ascii"
    return clean.encode(encoding, "backslashreplace").decode(encoding)


def _folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotServe(f"--save {path}: {error.strerror}") from error
    return folder


def _saved(message: ReceivedMessage, folder: Path) -> str:
    """Write a message into a file; return a line about it."""
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(message.received_at))
    path = folder / f"{moment}-{message.id[:8]}.eml"
    try:
        path.write_bytes(message.content)
    except OSError as error:
        return f"          NOT SAVED: {path}: {error.strerror}"
    return f"          saved as {path}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m django_lettermint.testing`."""
    parser = argparse.ArgumentParser(
        prog="python -m django_lettermint.testing", description=DESCRIPTION
    )
    add_arguments(parser)
    try:
        serve(parser.parse_args(arguments), partial(print, flush=True))
    except CannotServe as error:
        parser.exit(1, f"Error: {error}.\n")
