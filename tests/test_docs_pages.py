"""The pages of the documentation are complete: each is found, each module is explained."""

from __future__ import annotations

import re

from .snippets import DOCS
from .test_architecture import ORDER


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(r"^\w+$", "\n".join(index.split("```")[1::2]), re.MULTILINE)

    assert sorted(listed) == sorted(
        page.stem for page in DOCS.glob("*.md") if page.stem != "index"
    )


def test_every_module_is_explained_in_the_order_of_imports() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")

    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(ORDER)
