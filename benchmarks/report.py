"""What was measured, as Markdown and as a chart."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import django
from contestants import Cell

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PIPELINING, CHUNKING = "ours, PIPELINING", "ours, CHUNKING"
FOUR, FOUR_CHUNKING = "ours, 4 connections", "ours, CHUNKING, 4 connections"
DJANGO, HELD, NODE = "Django", "Django, held open", "nodemailer, pool"
_MODES = {"single": "one by one", "threads": "8 threads", "batch": "batch"}


@dataclass(frozen=True)
class Row:
    """Medians: messages a second, milliseconds of CPU, and per message what the relay saw."""

    rate: float
    cpu: float
    turns: float
    connections: float


Results = Mapping[Cell, Mapping[str, Row]]


@dataclass(frozen=True)
class Goal:
    """A ratio to reach in a cell; by rate (higher is better) or by CPU (lower is)."""

    cell: Cell
    who: str
    whom: str
    target: float
    by: str = "rate"


GOALS = [
    *(
        goal
        for mode in ("single", "threads")
        for goal in (
            Goal(Cell(20, mode), PIPELINING, DJANGO, 6.2),
            Goal(Cell(20, mode), PIPELINING, NODE, 1.0),
            Goal(Cell(20, mode), CHUNKING, DJANGO, 12),
            Goal(Cell(20, mode), CHUNKING, NODE, 1.9),
        )
    ),
    Goal(Cell(20, "batch"), PIPELINING, DJANGO, 3.9),
    Goal(Cell(20, "batch"), FOUR, DJANGO, 14),
    Goal(Cell(20, "batch"), FOUR, NODE, 1.4),
    Goal(Cell(20, "batch", think=20), FOUR, DJANGO, 9),
    Goal(Cell(20, "batch", think=20), FOUR, NODE, 1.1),
    Goal(Cell(20, "batch"), FOUR_CHUNKING, DJANGO, 30),
    Goal(Cell(0), PIPELINING, HELD, 4, "cpu"),
    Goal(Cell(0, "batch"), PIPELINING, HELD, 6, "cpu"),
    Goal(Cell(0, "batch", "100 KB"), PIPELINING, HELD, 4, "cpu"),
    Goal(Cell(0, "batch", "1 MB"), PIPELINING, HELD, 4, "cpu"),
    Goal(Cell(0, "batch", recipients=10), PIPELINING, HELD, 2.5, "cpu"),
]
#: Round trips a message that the relay may count.
TURNS = [
    (Cell(20), PIPELINING, 2.0),
    (Cell(20), CHUNKING, 1.0),
    (Cell(20, recipients=10), PIPELINING, 2.0),
    (Cell(20, recipients=10), CHUNKING, 1.0),
    (Cell(20, "batch"), PIPELINING, 1.05),
]


def title(cell: Cell) -> str:
    """Name a cell."""
    text = f"RTT {cell.rtt} ms, {_MODES[cell.mode]}"
    text += f" of {cell.count}" if cell.mode == "batch" else ""
    text += f", {cell.size}, {cell.recipients} recipient{'s' * (cell.recipients > 1)}"
    return text + (f", the relay thinks {cell.think} ms" if cell.think else "")


def tables(results: Results, cold: float) -> str:
    """Return goals and figures as Markdown."""
    python = ".".join(map(str, sys.version_info[:2]))
    about = (
        f"Python {python}, Django {django.get_version()}, {platform.machine()}; STARTTLS "
        "and AUTH PLAIN; medians of turns in random order; ratio: rate to Django's.\n"
    )
    return "\n".join([about, *_goals(results, cold), "", *_figures(results)])


def _goals(results: Results, cold: float) -> Iterator[str]:
    yield "| goal | wanted | reached | |\n|---|---|---|---|"
    for goal in GOALS:
        rows = results.get(goal.cell, {})
        if goal.who in rows and goal.whom in rows:
            who, whom = rows[goal.who], rows[goal.whom]
            ratio = who.rate / whom.rate if goal.by == "rate" else whom.cpu / who.cpu
            what = "rate" if goal.by == "rate" else "CPU"
            sign, form = ("≥ ", "{:.3g}x") if goal.by == "rate" else ("≤ ", "1/{:.3g}")
            yield _line(
                f"{title(goal.cell)}: {what} of {goal.who} to {goal.whom}",
                sign + form.format(goal.target),
                form.format(ratio),
                _verdict(reached=ratio >= goal.target),
            )
    for cell, name, limit in TURNS:
        if row := results.get(cell, {}).get(name):
            what = f"{title(cell)}: round trips a message, {name}"
            verdict = _verdict(reached=row.turns <= limit + 0.02)
            yield _line(what, f"≤ {limit:g}", f"{row.turns:.2f}", verdict)
    what = "RTT 50 ms, cold first mail over implicit TLS: round trips by the clock"
    yield _line(what, "≤ 7", f"{cold:.1f}", _verdict(reached=cold <= 7))


def _verdict(*, reached: bool) -> str:
    return "reached" if reached else "**missed**"


def _figures(results: Results) -> Iterator[str]:
    for cell, rows in results.items():
        yield f"\n**{title(cell)}**\n"
        yield "| | messages/s | ratio | CPU ms | round trips | connections |"
        yield "|---|---|---|---|---|---|"
        for name, row in sorted(rows.items(), key=lambda item: item[1].rate):
            yield _line(
                name,
                f"{row.rate:.3g}" if row.rate < 1000 else f"{row.rate:.0f}",
                f"{row.rate / rows[DJANGO].rate:.3g}",
                f"{row.cpu:.2f}",
                f"{row.turns:.2f}",
                f"{row.connections:.2f}",
            )


def first_table(results: Results) -> str:
    """Return `send_mail` against Django's own."""
    lines = ["| | Django, mails/s | ours, mails/s | ratio |", "|---|---|---|---|"]
    for cell, rows in results.items():
        django_, ours = rows[DJANGO].rate, rows[PIPELINING].rate
        ratio = f"{ours / django_:.1f}x"
        lines.append(_line(title(cell), f"{django_:.1f}", f"{ours:.1f}", ratio))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def page(results: Results, cold: float, docs: Path) -> None:
    """Put the figures between the marks of the page, and the chart beside it."""
    path = docs / "performance.md"
    text = path.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{tables(results, cold)}\n\n{END}{after}")
    (docs / "performance.svg").write_text(chart(results))


def chart(results: Results) -> str:
    """Draw rates at 20 ms as bars, in multiples of Django's."""
    bars: list[tuple[str, float]] = []
    for cell in (Cell(20), Cell(20, "batch")):
        rows = results.get(cell, {})
        bars.append((title(cell), 0.0))
        bars += [
            (name, row.rate / rows[DJANGO].rate)
            for name, row in sorted(rows.items(), key=lambda item: item[1].rate)
            if name != "ceiling"
        ]
    return _svg(bars, scale=_scale(max(value for _, value in bars)))


def _scale(most: float) -> Callable[[float], float]:
    # Square roots keep both 1x and 100x visible.
    return lambda value: 420 * (value / most) ** 0.5


def _svg(bars: list[tuple[str, float]], scale: Callable[[float], float]) -> str:
    height = 24 * len(bars) + 16
    label = "Messages a second in multiples of Django&#39;s SMTP backend"
    box = f'viewBox="0 0 760 {height}" role="img" aria-label="{label}"'
    font = 'font-family="sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font}>',
        f'<rect width="760" height="{height}" fill="white"/>',
    ]
    for number, (name, value) in enumerate(bars):
        y = 24 * number + 24
        if not value:
            parts.append(f'<text x="8" y="{y}" font-weight="bold">{name}</text>')
            continue
        colour = "#1f77b4" if name.startswith("ours") else "#aaaaaa"
        width = scale(value)
        parts += [
            f'<text x="222" y="{y}" text-anchor="end">{name}</text>',
            f'<rect x="230" y="{y - 13}" width="{width:.0f}" height="16" fill="{colour}"/>',
            f'<text x="{236 + width:.0f}" y="{y}">{value:.3g}x</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
