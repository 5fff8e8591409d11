"""The pages of the documentation lead to each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.snippets import DOCS, PAGES, ROOT

#: Pages for contributors.
UNLISTED = {"index", "names"}


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(r"^\w+$", "\n".join(index.split("```")[1::2]), re.MULTILINE)

    assert {*listed} == {page.stem for page in DOCS.glob("*.md")} - UNLISTED


# Sphinx checks those between the pages of docs/, headings included.
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []
