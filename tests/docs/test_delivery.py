"""The page about delivery says what the classes are."""

from __future__ import annotations

import re

import pytest

from django_lettermint import exceptions
from django_lettermint.conf import OPTIONS
from django_lettermint.delivery import policy
from django_lettermint.delivery.policy import Decision
from django_lettermint.envelope import MAX_RECIPIENTS
from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from django_lettermint.results import Outcome
from django_lettermint.smtp.replies import MAX_LINE, MAX_LINES, MAX_REPLY
from tests.snippets import DOCS

PAGE = (DOCS / "delivery.md").read_text("utf-8")
#: Without line ends.
TEXT = " ".join(PAGE.split())
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


def test_every_error_is_explained_in_the_order_of_the_module() -> None:
    assert [*rows("Errors")] == [each.__name__ for each in CLASSES]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_whether_to_send_again(kind: type[LettermintError]) -> None:
    meaning, safe, later, remedy = rows("Errors")[kind.__name__]
    assert meaning
    assert remedy
    assert safe == ("yes" if kind.retry_safe else "no")
    if not later.startswith("by the repl"):
        assert later == ("yes" if kind.transient else "no")


def test_every_outcome_is_explained() -> None:
    assert [*rows("Three outcomes")] == [each.name for each in Outcome]


def test_times_are_options() -> None:
    assert [name for name in rows("Time") if name.isidentifier()] == [
        "timeout",
        "final_reply_timeout",
        "deadline",
    ]
    assert {"timeout", "final_reply_timeout", "deadline"} <= set(OPTIONS)


def test_numbers_are_those_of_the_code() -> None:
    assert f"up to {policy.MAX_REPEATS} times" in TEXT
    assert f"More than {MAX_RECIPIENTS} recipients" in TEXT
    assert f"The pauses begin at {policy.PAUSE} s and double" in TEXT
    assert f"a message sent by itself waits {policy.PATIENCE:g} seconds" in TEXT
    assert f"the messages of a list wait {policy.LIST_PATIENCE:g}" in TEXT
    limits = re.search(r"(\d+) KB a line, (\d+) KB a reply, (\d+) lines", TEXT)
    assert limits
    line, reply, lines = map(int, limits.groups())
    assert (line * 1024, reply * 1024, lines) == (MAX_LINE, MAX_REPLY, MAX_LINES)


def test_the_number_of_quick_retries_is_the_codes() -> None:
    numbers = {2: "two"}
    assert f"The first {numbers[policy.QUICK_RETRIES]} retries" in TEXT


def test_the_table_names_each_decision() -> None:
    decisions = " ".join(row[-1] for row in rows("Retries").values())
    named = {name.replace(" ", "_") for name in re.findall("`([^`]+)`", decisions)}
    # The others: what `connect` and the pool do for themselves, and an option.
    others = {"next_address", "deadline"}
    assert {each for each in named - others if each.islower()} == {
        each.value for each in Decision
    }
