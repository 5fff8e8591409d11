"""Start a local relay and the example's website together: `tox run -e example`.

With LETTERMINT_API_TOKEN in the environment, the site sends to Lettermint instead.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import sys
from contextlib import ExitStack

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application

from django_lettermint.testing import Relay
from django_lettermint.testing.inbox import Inbox

#: Seconds that the local relay takes for a mail, so that the pool page shows connections in use.
REPLY_DELAY = 0.1
#: As in `config.settings`.
TENANTS = ("north", "south")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the site; 0: any")
    parser.add_argument("--inbox-port", type=int, default=8025, help="of the inbox")
    # As with Ctrl-C, the relay then removes its certificates.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with ExitStack() as stack:
        options = parser.parse_args()
        server = stack.enter_context(listen(parser, options.port))
        address = f"http://127.0.0.1:{server.server_port}/"
        receiver = "Lettermint"
        if not os.environ.get("LETTERMINT_API_TOKEN"):
            # The relay need not keep them: the inbox has the newest.
            relay = stack.enter_context(
                Relay(
                    other_tokens=[f"lm_{name}" for name in TENANTS],
                    reply_delay=REPLY_DELAY,
                    keep_messages=False,
                )
            )
            use(relay)
            inbox = webhooks_and_inbox(parser, relay, address, options.inbox_port)
            stack.callback(inbox.close)
            receiver = f"a local relay, whose inbox is {inbox.url}"
        server.set_app(site())
        print(f"Sending to {receiver}.")
        print(f"Open {address} and press Ctrl-C here when you are done.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def listen(parser: argparse.ArgumentParser, port: int) -> ThreadedWSGIServer:
    """Make a server with a thread for each request, or exit if the port cannot be used."""
    try:
        return ThreadedWSGIServer(("127.0.0.1", port), WSGIRequestHandler)
    except (OSError, OverflowError) as error:
        parser.error(f"--port {port} cannot be used ({error}): choose another one.")


def webhooks_and_inbox(
    parser: argparse.ArgumentParser, relay: Relay, address: str, port: int
) -> Inbox:
    """Post webhooks to the site, and start the inbox, or exit if its port cannot be used."""
    url = f"{address}anymail/lettermint/tracking/"
    secret = os.environ["LETTERMINT_SIGNING_SECRET"]
    relay.webhooks.subscribe(url, secret)
    inbox = Inbox(relay, port=port, webhook_url=url, webhook_secret=secret)
    try:
        inbox.start()
    except (OSError, OverflowError) as error:
        parser.error(
            f"--inbox-port {port} cannot be used ({error}): choose another one."
        )
    os.environ["EXAMPLE_INBOX"] = inbox.url
    return inbox


def use(relay: Relay) -> None:
    """Pass the relay's address and the secret of its webhooks to the settings."""
    for name, value in relay.options().items():
        os.environ[f"LETTERMINT_{name.upper()}"] = str(value)
    for name in TENANTS:
        os.environ[f"LETTERMINT_{name.upper()}_TOKEN"] = f"lm_{name}"
    os.environ["LETTERMINT_SIGNING_SECRET"] = f"whsec_{secrets.token_hex(16)}"


def site() -> StaticFilesHandler:
    """Set up Django and the database, and return the handler of requests."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    handler = StaticFilesHandler(get_wsgi_application())
    call_command("migrate", verbosity=0)
    # The pages poll every second, so only errors are logged.
    logging.getLogger("django.server").setLevel(logging.WARNING)
    return handler


if __name__ == "__main__":
    main()
