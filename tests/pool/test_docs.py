"""The documentation of the pool says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

from django_lettermint.conf import POOL_OPTIONS
from django_lettermint.pool import CloseReason, PoolReport

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "pool.md").read_text("utf-8")


def first_column(title: str) -> list[str]:
    """Return the first cells of the table whose title row begins so."""
    table = TEXT.partition(f"\n| {title} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_table_of_statistics_has_every_field() -> None:
    assert sorted(first_column("Field")) == sorted(get_type_hints(PoolReport))


def test_the_table_of_reasons_has_every_one() -> None:
    assert sorted(first_column("Reason")) == sorted(CloseReason)


def test_every_option_is_explained() -> None:
    section = TEXT.partition("\n## Options\n")[2].partition("\n## ")[0]
    terms = re.findall(r"^- (\*\*.+?\*\*): ", section, re.MULTILINE)
    explained = re.findall(r"\w+", " ".join(terms))

    assert sorted(explained) == sorted(POOL_OPTIONS)
