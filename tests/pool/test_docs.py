"""The tables of docs/pool.md name every field of the statistics and every reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_type_hints

import pytest

from django_lettermint.pool import CloseReason, PoolReport

TEXT = (Path(__file__).parents[2] / "docs" / "pool.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("title", "names"), [("Field", get_type_hints(PoolReport)), ("Reason", CloseReason)]
)
def test_a_table_of_the_documentation_is_complete(
    title: str, names: Iterable[str]
) -> None:
    table = TEXT.partition(f"\n| {title} |")[2].partition("\n\n")[0]

    cells = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(cells) == sorted(names)
