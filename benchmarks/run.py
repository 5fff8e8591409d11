"""Measure this package against others, and print Markdown.

    tox run -e bench [-- --quick | --first | --write]

`--quick` takes a minute or two; `--first` compares `send_mail` alone with Django's;
`--write` puts the figures and the chart into `docs/` and `benchmarks/results.md`.
nodemailer and Haraka take part if they are in `.zoo` (`.ci/zoo`, and
`npm install --prefix .zoo nodemailer`).

All contestants of a cell take turns, in an order drawn anew each time, and medians are
shown. At RTT 0 judge by processor time, elsewhere by rate. The servers and the line
(`line.py`) are processes of their own on this machine.
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
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from django.conf import settings  # noqa: E402

settings.configure(SECRET_KEY="bench", USE_TZ=True)

import contestants  # noqa: E402
from contestants import Cell, Contestant, Sent, Target  # noqa: E402
from report import Row, about, all_figures, decisive, first_table, write  # noqa: E402

from django_lettermint.backend import EmailBackend  # noqa: E402
from django_lettermint.pool import close_pools, lease  # noqa: E402
from tests.zoo.haraka import PACKAGE, Haraka  # noqa: E402
from tests.zoo.server import TOKEN  # noqa: E402

#: Messages of a list for those whose rate does not depend on it, at RTTs above 0.
FEW = 10
SLOW = {contestants.DJANGO, contestants.HELD}
MODES = ("single", "threads", "list")

FULL = [
    *(Cell(rtt, mode) for rtt in (0, 20, 50) for mode in MODES),
    *(Cell(rtt, "list", size) for size in ("100 KB", "1 MB") for rtt in (0, 20)),
    *(Cell(20, mode, server="Haraka") for mode in MODES),
]
QUICK = [Cell(0, "single"), Cell(0, "list"), Cell(20, "single"), Cell(20, "list")]
FIRST = [Cell(rtt, mode) for rtt in (0, 20) for mode in ("single", "threads")]
COLD = Cell(50, "single", security="tls")


@dataclass
class Bench:
    """The servers, the lines to them, and what the relay counts."""

    targets: dict[tuple[str, int, str], Target]
    control: Any

    def target(self, cell: Cell) -> Target:
        return self.targets[cell.server, cell.rtt, cell.security]

    def trips(self) -> int:
        """Return the round trips that the relay counted since the last time."""
        self.control.write(b"{}\n")
        self.control.flush()
        return int(json.loads(self.control.readline()).get("turns", 0))


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
def bench(cells: Sequence[Cell]) -> Iterator[Bench]:
    """Run the servers of these cells, and a line to them for each round trip time."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ca_file = f"{folder}/ca.pem"
        ports = stack.enter_context(process("relay.py", ca_file))
        near = {
            ("relay", kind): Target(ports[kind], ca_file, "lm_bench", kind)
            for kind in ("starttls", "tls")
        }
        if any(cell.server == "Haraka" for cell in cells):
            haraka = stack.enter_context(Haraka())
            near["Haraka", "starttls"] = Target(
                haraka.ports["starttls"], str(haraka.root / "ca.pem"), TOKEN
            )
        targets = {(server, 0, kind): each for (server, kind), each in near.items()}
        for rtt in {cell.rtt for cell in cells} - {0}:
            far = [each.port for each in near.values()]
            lines = stack.enter_context(process("line.py", rtt / 1000, *far))
            for (server, kind), port in zip(near, lines, strict=True):
                target = replace(near[server, kind], port=port)
                targets[server, rtt, kind] = target
        sock = socket.create_connection(("127.0.0.1", ports["control"]))
        control = stack.enter_context(sock.makefile("rwb"))
        stack.enter_context(sock)
        yield Bench(targets, control)
        close_pools()
        contestants.close_held()


def measure(
    cell: Cell, peers: dict[str, Contestant], place: Bench, repeats: int, seconds: float
) -> dict[str, Row]:
    """Let the contestants take turns in a cell."""
    found: dict[str, list[tuple[Sent, int]]] = {name: [] for name in peers}
    for turn in range(repeats + 1):
        for name in random.sample(list(peers), len(peers)):
            place.trips()
            # The first turn makes connections, loads code and fills caches.
            limit = FEW if cell.rtt and name in SLOW else 0
            sent = peers[name](
                replace(cell, limit=limit), place.target(cell), seconds * bool(turn)
            )
            if turn:
                found[name].append((sent, place.trips()))
    return {
        name: Row(
            rate=statistics.median(sent.messages / sent.seconds for sent, _ in turns),
            cpu=statistics.median(sent.cpu / sent.messages * 1000 for sent, _ in turns),
            trips=statistics.median(trips / sent.messages for sent, trips in turns),
        )
        for name, turns in found.items()
    }


def cold(place: Bench, repeats: int) -> float:
    """Return the round trips of the first mail of a process, by the clock.

    The time without a line is not counted, and a round trip is what NOOP takes over it:
    of each the least of several, in which nothing waited for the processor.
    """
    make = contestants.Mails(COLD)
    far, near = place.target(COLD), place.target(replace(COLD, rtt=0))
    mails: dict[Target, list[float]] = {near: [], far: []}
    noops: dict[Target, list[float]] = {near: [], far: []}
    for _ in range(3 * repeats):
        for target in (near, far):
            contestants.configure(target)
            close_pools()
            backend = EmailBackend()
            began = time.perf_counter()
            backend.send_messages([make()])
            mails[target].append(time.perf_counter() - began)
            with lease(backend.config, seconds=30) as connection:
                for _ in range(5):
                    began = time.perf_counter()
                    assert connection.session.ping(30)
                    noops[target].append(time.perf_counter() - began)
    close_pools()

    def by_the_line(times: dict[Target, list[float]]) -> float:
        return min(times[far]) - min(times[near])

    return by_the_line(mails) / by_the_line(noops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4)
    modules = ROOT / ".zoo" / "node_modules"
    parser.add_argument("--node-modules", type=Path, default=modules)
    chosen = parser.parse_args()
    cells = QUICK if chosen.quick else FIRST if chosen.first else FULL
    if not PACKAGE.is_dir():
        print("Haraka is not installed: see .ci/zoo.\n")
        cells = [cell for cell in cells if cell.server != "Haraka"]
    with (
        bench([*cells, COLD]) as place,
        contestants.contestants(chosen.node_modules) as found,
    ):
        chosen_names = (contestants.DJANGO, contestants.OURS) if chosen.first else found
        peers = {name: found[name] for name in chosen_names}
        results: dict[Cell, dict[str, Row]] = {}
        for cell in cells:
            print(f"measuring {cell}", file=sys.stderr, flush=True)
            results[cell] = measure(cell, peers, place, chosen.repeats, chosen.seconds)
        first_mail = cold(place, chosen.repeats)
    if chosen.first:
        print(first_table(results))
        return
    print(
        "\n".join([about(), "", decisive(results, first_mail), *all_figures(results)])
    )
    if chosen.write:
        write(results, first_mail, ROOT)


if __name__ == "__main__":
    main()
