"""The tables of docs/delivery.md are those of the code."""

from __future__ import annotations

import re

import pytest

from django_lettermint import exceptions
from django_lettermint.delivery import policy
from django_lettermint.delivery.policy import Decision
from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from django_lettermint.results import Outcome
from tests.snippets import DOCS

PAGE = (DOCS / "delivery.md").read_text("utf-8")
CLASSES = [
    each
    for each in vars(exceptions).values()
    if isinstance(each, type)
    and each.__module__ == exceptions.__name__
    and (issubclass(each, LettermintError) or each is LettermintInvalidMessage)
    and each is not LettermintError
]


def rows(heading: str) -> dict[str, list[str]]:
    """Return the first table below a heading, by the name in its first column."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_error_and_outcome_is_explained() -> None:
    assert [*rows("Errors")] == [each.__name__ for each in CLASSES]
    assert [*rows("Three outcomes")] == [each.name for each in Outcome]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_whether_to_send_again(kind: type[LettermintError]) -> None:
    _, safe, later, _ = rows("Errors")[kind.__name__]

    assert safe == ("yes" if kind.retry_safe else "no")
    if not later.startswith("by the repl"):
        assert later == ("yes" if kind.transient else "no")


def test_the_table_of_retries_names_each_decision() -> None:
    decisions = " ".join(row[-1] for row in rows("Retries").values())
    named = {name.replace(" ", "_") for name in re.findall("`([^`]+)`", decisions)}

    # `connect()` takes the next address itself, and `deadline` is an option.
    others = {"next_address", "deadline"}
    assert {each for each in named - others if each.islower()} == {
        each.value for each in Decision
    }


def test_the_limits_of_retries_are_those_of_the_policy() -> None:
    text = " ".join(PAGE.split())

    assert f"up to {policy.MAX_REPEATS} times" in text
    assert f"The pauses begin at {policy.PAUSE} s and double" in text
    assert f"a single message waits {policy.PATIENCE:g} seconds" in text
    assert f"the messages of a list wait {policy.LIST_PATIENCE:g}" in text
