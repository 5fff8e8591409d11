"""What was measured, as Markdown and as a chart."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import django
from contestants import (
    DJANGO,
    HELD,
    NODE,
    NODE_TUNED,
    OURS,
    OURS_TUNED,
    THREADS,
    Cell,
)

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
NAMES = (DJANGO, HELD, NODE, NODE_TUNED, OURS, OURS_TUNED)
_MODES = {"single": "one by one", "threads": f"{THREADS} threads", "list": "a list"}


@dataclass(frozen=True)
class Row:
    """Medians: messages a second, milliseconds of CPU, and the relay's round trips a mail."""

    rate: float
    cpu: float
    trips: float


Results = Mapping[Cell, Mapping[str, Row]]


@dataclass(frozen=True)
class Goal:
    """The ratio to reach: of rates, or of the CPU time of another contestant to ours."""

    cell: Cell
    whom: str
    factor: float
    by: str = "rate"


GOALS = (
    Goal(Cell(20, "list"), DJANGO, 14),
    Goal(Cell(20, "list"), NODE, 1.5),
    Goal(Cell(50, "list"), NODE, 1.5),
    Goal(Cell(20, "list", server="Haraka"), NODE, 1.0),
    Goal(Cell(20, "single"), NODE_TUNED, 1.0),
    Goal(Cell(20, "threads"), NODE_TUNED, 1.0),
    Goal(Cell(0, "threads"), NODE_TUNED, 1.0),
    Goal(Cell(0, "single"), HELD, 4.5, "cpu"),
    Goal(Cell(0, "list"), HELD, 6, "cpu"),
    Goal(Cell(0, "list", "100 KB"), HELD, 4, "cpu"),
)


def title(cell: Cell) -> str:
    """Name a cell."""
    text = f"{cell.rtt} ms, {_MODES[cell.mode]}"
    text += f" of {cell.count}" if cell.mode == "list" else ""
    text += f" of {cell.size} each" if cell.size != "2 KB" else ""
    return text + (f", to {cell.server}" if cell.server != "relay" else "")


def decisive(results: Results, first_mail: float) -> str:
    """Return the rows that decide, each with its goal."""
    lines = [
        "| | Django | held open | nodemailer | tuned | ours | tuned | goal | reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for goal in GOALS:
        rows = results.get(goal.cell, {})
        if OURS not in rows or goal.whom not in rows:
            continue
        mine, other = rows[OURS], rows[goal.whom]
        by_rate = goal.by == "rate"
        factor = mine.rate / other.rate if by_rate else other.cpu / mine.cpu
        lines.append(
            _line(
                title(goal.cell) + ("" if by_rate else ": CPU ms"),
                *(_figure(rows.get(name), goal.by) for name in NAMES),
                f"{'≥ ' if by_rate else '≤ 1/'}{goal.factor:g} of {goal.whom}",
                f"{'' if by_rate else '1/'}{factor:.2f}"
                + ("" if factor >= goal.factor else ", **missed**"),
            )
        )
    reached = f"{first_mail:.2f}" + ("" if first_mail <= 7.0 else ", **missed**")
    text = "first mail of a process, TLS from the first octet: round trips"
    lines.append(_line(text, *[""] * 4, f"{first_mail:.2f}", "", "≤ 7.0", reached))
    return "\n".join(lines)


def all_figures(results: Results) -> Iterator[str]:
    """Yield a table for each cell."""
    for cell, rows in results.items():
        yield f"\n**{title(cell)}**\n"
        yield "| | mails/s | to Django's | CPU ms a mail | round trips a mail |"
        yield "|---|---|---|---|---|"
        for name, row in sorted(rows.items(), key=lambda item: item[1].rate):
            ratio = f"{row.rate / rows[DJANGO].rate:.1f}x"
            trips = f"{row.trips:.2f}" if row.trips else ""
            yield _line(name, _figure(row, "rate"), ratio, _figure(row, "cpu"), trips)


def first_table(results: Results) -> str:
    """Return `send_mail` against Django's own."""
    lines = ["| | Django, mails/s | ours, mails/s | ratio |", "|---|---|---|---|"]
    for cell, rows in results.items():
        theirs, mine = rows[DJANGO].rate, rows[OURS].rate
        ratio = f"{mine / theirs:.1f}x"
        lines.append(_line(title(cell), f"{theirs:.1f}", f"{mine:.1f}", ratio))
    return "\n".join(lines)


def about() -> str:
    """Say what it was measured with."""
    python = ".".join(map(str, sys.version_info[:2]))
    return f"Python {python}, Django {django.get_version()}, {platform.machine()}."


def _figure(row: Row | None, by: str) -> str:
    if row is None:
        return ""
    return f"{row.cpu:.2f}" if by == "cpu" else f"{row.rate:.3g}"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def write(results: Results, first_mail: float, root: Path) -> None:
    """Put the rows that decide into the page, and the others and the chart beside it."""
    page = root / "docs" / "performance.md"
    text = page.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    table = decisive(results, first_mail)
    page.write_text(f"{before}{BEGIN}\n\n{about()}\n\n{table}\n\n{END}{after}")
    page.with_suffix(".svg").write_text(chart(results))
    lines = ["# All figures of the benchmark", "", about(), *all_figures(results), ""]
    (root / "benchmarks" / "results.md").write_text("\n".join(lines))


def chart(results: Results) -> str:
    """Draw rates at 20 ms as bars, in multiples of Django's."""
    bars: list[tuple[str, float]] = []
    for mode in ("single", "threads", "list"):
        rows = results.get(Cell(20, mode), {})
        bars.append((title(Cell(20, mode)), 0.0))
        bars += [
            (name, rows[name].rate / rows[DJANGO].rate)
            for name in NAMES
            if name in rows
        ]
    most = max(value for _, value in bars)
    height = 24 * len(bars) + 16
    label = "Mails a second in multiples of Django&#39;s SMTP backend"
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
        colour = "#1f77b4" if name in (OURS, OURS_TUNED) else "#aaaaaa"
        width = 450 * value / most
        parts += [
            f'<text x="172" y="{y}" text-anchor="end">{name}</text>',
            f'<rect x="180" y="{y - 13}" width="{width:.0f}" height="16" fill="{colour}"/>',
            f'<text x="{186 + width:.0f}" y="{y}">{value:.3g}x</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
