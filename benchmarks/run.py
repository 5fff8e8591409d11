"""Measure this package against others, and print Markdown.

    tox run -e bench [-- --quick | --first | --write]

`--quick` takes a minute or two; `--first` compares `send_mail` alone with Django's;
`--write` puts the table and the chart into `docs/`. nodemailer takes part if `node` is
there and `--node-modules` has it (`npm install nodemailer`).

All contestants of a cell take turns, in an order drawn anew each time, and medians are
shown. At RTT 0 judge by processor time, elsewhere by rate. The relay (`relay.py`) and the
line (`line.py`) are processes of their own on this machine.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from django.conf import settings  # noqa: E402

settings.configure(SECRET_KEY="bench", USE_TZ=True)

import contestants  # noqa: E402
from contestants import CONTESTANTS, Cell, Contestant, Sent, Target  # noqa: E402
from report import Row, first_table, page, tables  # noqa: E402

from django_lettermint.pool import close_pools  # noqa: E402

#: Messages of a batch for those whose rate does not depend on it, at RTTs above 0.
FEW = 10

FULL = [
    *(
        Cell(rtt, mode)
        for rtt in (0, 20, 50)
        for mode in ("single", "threads", "batch")
    ),
    *(
        Cell(rtt, mode, recipients=10)
        for rtt in (0, 20)
        for mode in ("single", "batch")
    ),
    *(
        Cell(rtt, mode, size)
        for size in ("100 KB", "1 MB")
        for rtt in (0, 20)
        for mode in ("single", "batch")
    ),
    Cell(20, "batch", think=20),
]
QUICK = [Cell(0), Cell(0, "batch"), Cell(20), Cell(20, "threads")]
FIRST = [Cell(rtt, mode) for rtt in (0, 20) for mode in ("single", "threads")]


@dataclass
class Bench:
    """The relay, the lines to it, and what the relay counts."""

    ca_file: str
    #: Ports by round trip time and kind of TLS.
    ports: dict[tuple[int, str], int]
    control: Any

    def target(self, cell: Cell) -> Target:
        return Target(self.ports[cell.rtt, cell.security], self.ca_file, cell.security)

    def counters(self, **options: float) -> dict[str, int]:
        """Return what was counted since the last time; set options."""
        self.control.write(json.dumps(options).encode() + b"\n")
        self.control.flush()
        found: dict[str, int] = json.loads(self.control.readline())
        return found


@contextmanager
def process(script: str, *arguments: object) -> Iterator[Any]:
    """Run a script of this folder; give the JSON that it prints first."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert running.stdout
        yield json.loads(running.stdout.readline())
    finally:
        running.terminate()
        running.wait(10)


@contextmanager
def bench(rtts: Sequence[int]) -> Iterator[Bench]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ca_file = f"{folder}/ca.pem"
        ports = stack.enter_context(process("relay.py", ca_file))
        kinds = ("starttls", "tls")
        found = {(0, kind): ports[kind] for kind in kinds}
        for rtt in filter(None, rtts):
            far = [ports[kind] for kind in kinds]
            near = stack.enter_context(process("line.py", rtt / 1000, *far))
            found |= {(rtt, kind): port for kind, port in zip(kinds, near, strict=True)}
        sock = socket.create_connection(("127.0.0.1", ports["control"]))
        control = stack.enter_context(sock.makefile("rwb"))
        stack.enter_context(sock)
        yield Bench(ca_file, found, control)
        close_pools()
        contestants.close_held()


def measure(
    cell: Cell, peers: dict[str, Contestant], place: Bench, repeats: int, seconds: float
) -> dict[str, Row]:
    """Let the contestants take turns in a cell."""
    target = place.target(cell)
    place.counters(think=cell.think / 1000)
    found: dict[str, list[tuple[Sent, dict[str, int]]]] = {name: [] for name in peers}
    for turn in range(repeats + 1):
        for name in random.sample(list(peers), len(peers)):
            place.counters()
            # The first turn makes connections, loads code and fills caches.
            limit = FEW if cell.rtt and name in contestants.SLOW else 0
            sent = peers[name](replace(cell, limit=limit), target, seconds * bool(turn))
            if turn:
                found[name].append((sent, place.counters()))
    return {name: _row(values) for name, values in found.items()}


def _row(values: Sequence[tuple[Sent, dict[str, int]]]) -> Row:
    def median(figures: Iterator[float]) -> float:
        return statistics.median(figures)

    return Row(
        rate=median(sent.messages / sent.seconds for sent, _ in values),
        cpu=median(sent.cpu / sent.messages * 1000 for sent, _ in values),
        turns=median(
            counters.get("turns", 0) / sent.messages for sent, counters in values
        ),
        connections=median(
            counters.get("connections", 0) / sent.messages for sent, counters in values
        ),
    )


def cold(place: Bench, rtt: int, repeats: int) -> float:
    """Return the round trips of the first mail of a process, implicit TLS."""
    cell = Cell(rtt, security="tls")
    backend = contestants.our_backend(place.target(cell))
    make = contestants.Mails(cell)
    times: dict[int, list[float]] = {0: [], rtt: []}
    near = Target(place.ports[0, "tls"], place.ca_file, "tls")
    for _ in range(repeats):
        for distance, target in ((0, near), (rtt, place.target(cell))):
            backend = contestants.our_backend(target)
            close_pools()
            began = time.perf_counter()
            backend.send_messages([make()])
            times[distance].append(time.perf_counter() - began)
    close_pools()
    extra = statistics.median(times[rtt]) - statistics.median(times[0])
    return extra / (rtt / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4)
    modules = HERE / "node_modules"
    parser.add_argument("--node-modules", type=Path, default=modules)
    chosen = parser.parse_args()
    cells = QUICK if chosen.quick else FIRST if chosen.first else FULL
    with (
        bench(sorted({cell.rtt for cell in cells} | {50})) as place,
        contestants.nodemailer(chosen.node_modules) as peer,
    ):
        peers = dict(CONTESTANTS)
        if peer:
            peers["nodemailer, pool"] = peer
        else:
            print("nodemailer is not installed: it takes no part.\n")
        if chosen.first:
            peers = {name: peers[name] for name in ("Django", "ours, PIPELINING")}
        results: dict[Cell, dict[str, Row]] = {}
        for cell in cells:
            print(f"measuring {cell}", file=sys.stderr, flush=True)
            here = {
                name: run
                for name, run in peers.items()
                if cell.mode == "batch" or name not in contestants.ONLY_BATCH
            }
            results[cell] = measure(cell, here, place, chosen.repeats, chosen.seconds)
        place.counters(think=0)
        trips = cold(place, 50, chosen.repeats)
    if chosen.first:
        print(first_table(results))
        return
    print(tables(results, trips))
    if chosen.write:
        page(results, trips, HERE.parent / "docs")


if __name__ == "__main__":
    main()
