"""The reference of the settings says what the code does."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from django_lettermint.checks import Id
from django_lettermint.conf import OPTIONS, POOL_OPTIONS, QUEUE_OPTIONS, Option
from tests.snippets import DOCS

TEXT = (DOCS / "settings.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines[2:]  # below the title and the ruler
    ]


@pytest.mark.parametrize(
    ("heading", "options"),
    [
        ("Options", OPTIONS),
        ("The pool", POOL_OPTIONS),
        ("The queue", QUEUE_OPTIONS),
    ],
)
def test_the_table_has_every_option_in_order_with_its_default_and_meaning(
    heading: str, options: Mapping[str, Option]
) -> None:
    assert rows(heading) == [
        [
            f"`{option.name}`",
            "required" if option.required else f"`{option.default!r}`",
            option.doc,
        ]
        for option in options.values()
    ]


def test_the_table_of_checks_has_every_id_in_order() -> None:
    assert [row[0] for row in rows("Checks")] == [f"`{identity}`" for identity in Id]


@pytest.mark.parametrize("name", [*OPTIONS, *QUEUE_OPTIONS])
def test_no_setting_is_written_in_another_case(name: str) -> None:
    spelled = re.findall(rf"LETTERMINT_{name}\b", TEXT, re.IGNORECASE)

    assert set(spelled) <= {f"LETTERMINT_{name.upper()}"}
