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

#: Seconds a mail takes at the local relay: enough to see the pool at work.
REPLY_DELAY = 0.1


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the site; 0: any")
    # Interrupted either way, the relay removes its certificates.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with ExitStack() as stack:
        server = stack.enter_context(listen(parser, parser.parse_args().port))
        relay = None
        if not os.environ.get("LETTERMINT_API_TOKEN"):
            # Webhooks are all that anybody wants to know about a mail here.
            relay = stack.enter_context(
                Relay(reply_delay=REPLY_DELAY, keep_messages=False)
            )
            use(relay)
        server.set_app(site())
        address = f"http://127.0.0.1:{server.server_port}/"
        if relay:
            hooks = f"{address}anymail/lettermint/tracking/"
            relay.webhooks.subscribe(hooks, os.environ["LETTERMINT_SIGNING_SECRET"])
        print(f"Sending to {'a local relay' if relay else 'Lettermint'}.")
        print(f"Open {address} and press Ctrl-C here when you are done.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def listen(parser: argparse.ArgumentParser, port: int) -> ThreadedWSGIServer:
    """Make a server with a thread for each request, or exit if the port is no use."""
    try:
        return ThreadedWSGIServer(("127.0.0.1", port), WSGIRequestHandler)
    except (OSError, OverflowError) as error:
        parser.error(f"--port {port} is no use ({error}): choose another one.")


def use(relay: Relay) -> None:
    """Tell the settings where the relay is and what signs its webhooks."""
    for name, value in relay.options().items():
        os.environ[f"LETTERMINT_{name.upper()}"] = str(value)
    os.environ["LETTERMINT_SIGNING_SECRET"] = f"whsec_{secrets.token_hex(16)}"


def site() -> StaticFilesHandler:
    """Set up Django and the database; return what answers requests."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    handler = StaticFilesHandler(get_wsgi_application())
    call_command("migrate", verbosity=0)
    # The pages ask again and again: only what goes wrong is worth a line.
    logging.getLogger("django.server").setLevel(logging.WARNING)
    return handler


if __name__ == "__main__":
    main()
