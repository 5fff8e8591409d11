"""Every page of the documentation is in its index."""

from __future__ import annotations

import re

from tests.snippets import DOCS


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(r"^\w+$", "\n".join(index.split("```")[1::2]), re.MULTILINE)

    assert sorted(listed) == sorted(
        page.stem for page in DOCS.glob("*.md") if page.stem != "index"
    )
