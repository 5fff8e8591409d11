"""Send many mails to a server that fails at random, and account for each.

`tox run -e chaos` sends 2,000 twice: with idempotency, then without. The exit code is 1 if a
promise was broken, for example if a mail is reported as SENT but was not delivered once.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys

import django

from tests.chaos.run import THREADS, run


def main() -> int:
    """Run twice and print both reports."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=2821)
    parser.add_argument("--mails", type=int, default=2000)
    options = parser.parse_args()
    # Show where it hangs, if it does.
    faulthandler.dump_traceback_later(300, exit=True)
    logging.getLogger("django_lettermint").setLevel(logging.CRITICAL)
    broken = 0
    for idempotency, tls in ((True, "implicit"), (False, "starttls")):
        sys.stdout.write(
            f"\n{options.mails} mails in {THREADS} threads, seed {options.seed}, "
            f"idempotency {'on' if idempotency else 'off'}, TLS {tls}\n\n"
        )
        done = run(options.mails, options.seed, idempotency=idempotency, tls=tls)
        sys.stdout.write(f"{done}\n")
        broken += len(done.broken)
    faulthandler.cancel_dump_traceback_later()
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    sys.exit(main())
