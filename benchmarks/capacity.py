"""Simulate how many mails a second get out, draw it, and check it against a measured point.

    python benchmarks/capacity.py [--check] [--svg docs/capacity.svg]

The model: a mail needs its process for `cpu` seconds (one mail at a time), then its
connection for `trips` round trips and the relay's own time, which varies.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Round trips of a single mail on an open connection: MAIL RCPT DATA, then the content.
TRIPS = 2
#: Seconds that the relay takes over a message, on average.
RELAY = 0.02
#: Seconds of processor time for a mail, rendering included.
CPU = 0.002
WIDTH, HEIGHT, MARGIN = 760, 420, 60
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd")


@dataclass(frozen=True)
class Setup:
    """What sends: processes, each with a pool, and as many threads as connections."""

    workers: int
    max_size: int
    trips: int = TRIPS
    relay: float = RELAY
    cpu: float = CPU

    @property
    def connections(self) -> int:
        """Return all connections together."""
        return self.workers * self.max_size


def simulate(setup: Setup, rtt: float, *, mails: int = 4000, seed: int = 1) -> float:
    """Return mails a second, with the relay's time spread exponentially."""
    dice = random.Random(seed)
    processor = [0.0] * setup.workers
    free = [(0.0, number) for number in range(setup.connections)]
    for _ in range(mails):
        now, number = heapq.heappop(free)
        worker = number % setup.workers
        processor[worker] = max(now, processor[worker]) + setup.cpu
        taken = dice.expovariate(1 / setup.relay) if setup.relay else 0.0
        done = processor[worker] + setup.trips * rtt + taken
        heapq.heappush(free, (done, number))
    return mails / max(moment for moment, _ in free)


def measure(connections: int, rtt: float, relay: float, *, mails: int = 200) -> float:
    """Send through the real pool to a server on this machine that answers late."""
    sys.path.insert(0, str(ROOT))
    from django.conf import settings

    if not settings.configured:
        settings.configure(SECRET_KEY="benchmark", USE_TZ=True)
    from django.core.mail import EmailMessage

    from django_lettermint.backend import EmailBackend
    from django_lettermint.pool import close_pools
    from tests.faultserver import FaultServer, On, stall

    script = [On("data", stall(rtt)), On("dot", stall(rtt + relay))] if rtt else []
    with FaultServer(script, tls=None) as server:
        options = server.options(
            pool={"max_size": connections, "max_messages": 0}, timeout=30
        )
        del options["ca_file"]
        backend = EmailBackend(**options)

        def send(count: int) -> None:
            for _ in range(count):
                message = EmailMessage("Hi", "…", "a@example.org", ["b@example.org"])
                backend.send_messages([message])

        send(1)
        threads = [
            threading.Thread(target=send, args=(mails // connections,))
            for _ in range(connections)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        close_pools()
    return (mails // connections) * connections / seconds


def check() -> bool:
    """Compare the simulation with a measured point; tell whether they agree."""
    # What the server here takes for itself is in the first measurement, too.
    cpu = 1 / measure(1, 0.0, 0.0, mails=300)
    rtt, relay, connections = 0.03, 0.02, 4
    expected = simulate(Setup(1, connections, relay=relay, cpu=cpu), rtt)
    found = measure(connections, rtt, relay)
    print(
        f"{connections} connections, {rtt * 1000:.0f} ms round trip, "
        f"{cpu * 1000:.1f} ms of processor a mail: "
        f"{expected:.0f} mails/s simulated, {found:.0f} measured"
    )
    return 0.75 < found / expected < 1.33


def table(setups: Sequence[Setup], rtts: Sequence[float]) -> Iterator[str]:
    """Make a Markdown table of simulated mails a second."""
    heads = " | ".join(f"{rtt * 1000:g} ms" for rtt in rtts)
    yield f"| Workers x connections | {heads} |"
    yield "| --- |" + " ---: |" * len(rtts)
    for setup in setups:
        cells = " | ".join(f"{simulate(setup, rtt):.0f}" for rtt in rtts)
        yield f"| {setup.workers} x {setup.max_size} | {cells} |"


def chart(setups: Sequence[Setup], rtts: Sequence[float]) -> str:
    """Draw mails a second over the round-trip time."""
    curves = [[simulate(setup, rtt) for rtt in rtts] for setup in setups]
    top = max(map(max, curves))
    across, up = WIDTH - 3 * MARGIN, HEIGHT - 2 * MARGIN

    def x(rtt: float) -> float:
        return MARGIN + across * rtt / rtts[-1]

    def y(rate: float) -> float:
        return HEIGHT - MARGIN - up * rate / top

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="30">mails a second, by the round-trip time in ms</text>',
    ]
    for step in range(5):
        rate, rtt = top * step / 4, rtts[-1] * step / 4
        parts += [
            f'<path d="M{MARGIN} {y(rate):.0f}h{across}" stroke="#ddd"/>',
            (
                f'<text x="{MARGIN - 8}" y="{y(rate) + 4:.0f}" text-anchor="end">'
                f"{rate:.0f}</text>"
            ),
            (
                f'<text x="{x(rtt):.0f}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">'
                f"{rtt * 1000:.0f}</text>"
            ),
        ]
    for colour, setup, rates in zip(COLOURS, setups, curves, strict=False):
        points = " ".join(
            f"{x(rtt):.1f},{y(rate):.1f}" for rtt, rate in zip(rtts, rates, strict=True)
        )
        label = f"{setup.workers} x {setup.max_size}"
        parts += [
            (
                f'<polyline points="{points}" fill="none" stroke="{colour}" '
                'stroke-width="2"/>'
            ),
            (
                f'<text x="{x(rtts[-1]) + 6:.0f}" y="{y(rates[-1]) + 4:.0f}" '
                f'fill="{colour}">{label}</text>'
            ),
        ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Print the table; draw and check if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--svg", type=Path, help="write the chart to this file")
    parser.add_argument("--check", action="store_true", help="measure a point as well")
    arguments = parser.parse_args()
    setups = [Setup(1, 1), Setup(1, 4), Setup(4, 4), Setup(8, 4)]
    print("\n".join(table(setups, [0.001, 0.01, 0.03, 0.1])))
    if arguments.svg:
        rtts = [step / 1000 for step in (1, 2, 5, 10, 20, 30, 40, 60, 80, 100)]
        arguments.svg.write_text(chart(setups, rtts), "utf-8")
    if arguments.check and not check():
        sys.exit("the simulation is off by more than a third")


if __name__ == "__main__":
    main()
