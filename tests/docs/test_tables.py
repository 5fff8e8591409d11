"""The tables of the documentation are those of the code."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from django.urls import reverse

import django_lettermint.testing
from django_lettermint import exceptions
from django_lettermint.backend import EmailBackend
from django_lettermint.checks import Id
from django_lettermint.conf import OPTIONS, POOL_OPTIONS, QUEUE_OPTIONS, Option
from django_lettermint.delivery import policy
from django_lettermint.delivery.policy import Decision
from django_lettermint.exceptions import LettermintError, LettermintInvalidMessage
from django_lettermint.extras import extract_extras
from django_lettermint.results import Outcome, RecipientResult, SendResult
from tests.snippets import DOCS

#: The classes of errors by name.
ERRORS = {
    name: value
    for name, value in vars(exceptions).items()
    if inspect.isclass(value)
    and value.__module__ == exceptions.__name__
    and not name.startswith("_")
}
#: Those with which sending ends.
ENDS = {
    name: kind
    for name, kind in ERRORS.items()
    if (issubclass(kind, LettermintError) and kind is not LettermintError)
    or kind is LettermintInvalidMessage
}
#: Attributes of errors that this package itself uses.
INTERNAL = {"with_reply", "phase", "step", "limits_connections"}


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading of a page."""
    text = (DOCS / page).read_text("utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines, f"{page} has no table below {heading!r}"
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines[2:]  # below the title and the ruler
    ]


def names(page: str, heading: str) -> list[str]:
    """Return the first column of a table."""
    return [row[0].strip("`") for row in rows(page, heading)]


# -- settings.md -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "options"),
    [("Options", OPTIONS), ("The pool", POOL_OPTIONS), ("The queue", QUEUE_OPTIONS)],
)
def test_the_table_has_every_option_in_order_with_its_default_and_meaning(
    heading: str, options: Mapping[str, Option]
) -> None:
    assert rows("settings.md", heading) == [
        [
            f"`{option.name}`",
            "required" if option.required else f"`{option.default!r}`",
            option.doc,
        ]
        for option in options.values()
    ]


def test_the_table_of_checks_has_every_id_in_order() -> None:
    assert names("settings.md", "Checks") == [*Id]


# -- delivery.md -------------------------------------------------------------------------


def test_every_error_and_outcome_is_explained() -> None:
    assert names("delivery.md", "Errors") == [*ENDS]
    assert names("delivery.md", "Three outcomes") == [each.name for each in Outcome]


def test_an_error_says_whether_to_send_again() -> None:
    for name, _, safe, later, _ in rows("delivery.md", "Errors"):
        kind = ENDS[name.strip("`")]
        assert safe == ("yes" if kind.retry_safe else "no")
        if not later.startswith("by the repl"):
            assert later == ("yes" if kind.transient else "no")


def test_the_table_of_retries_names_each_decision() -> None:
    decisions = " ".join(row[-1] for row in rows("delivery.md", "Retries"))
    named = {name.replace(" ", "_") for name in re.findall("`([^`]+)`", decisions)}

    # `connect()` takes the next address itself, and `deadline` is an option.
    others = {"next_address", "deadline"}
    assert {each for each in named - others if each.islower()} == {
        each.value for each in Decision
    }


def test_the_limits_of_retries_are_those_of_the_policy() -> None:
    text = " ".join((DOCS / "delivery.md").read_text("utf-8").split())

    assert f"up to {policy.MAX_REPEATS} times" in text
    assert f"The pauses begin at {policy.PAUSE} s and double" in text
    assert f"a single message waits {policy.PATIENCE:g} seconds" in text
    assert f"the messages of a list wait {policy.LIST_PATIENCE:g}" in text


# -- names.md, the public names ----------------------------------------------------------


def commands() -> list[str]:
    """Return our commands, and each with each of its own arguments."""
    inherited = {each.dest for each in BaseCommand().create_parser("", "")._actions}
    found = []
    folder = Path(django_lettermint.__file__).parent / "management" / "commands"
    for module in pkgutil.iter_modules([str(folder)]):
        command = load_command_class("django_lettermint", module.name)
        found.append(module.name)
        for action in command.create_parser("manage.py", module.name)._actions:
            if action.dest not in inherited:
                spelled = action.option_strings or [action.dest]
                found.append(f"{module.name} {spelled[0]}")
    return found


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("Options", lambda: OPTIONS),
        ("Keys of `pool`", lambda: POOL_OPTIONS),
        ("Options of the queueing backend", lambda: QUEUE_OPTIONS),
        ("Fields of `SendResult`", lambda: inspect.signature(SendResult).parameters),
        (
            "Fields of `RecipientResult`",
            lambda: inspect.signature(RecipientResult).parameters,
        ),
        ("Errors", lambda: ERRORS),
        ("Checks", lambda: Id),
        ("Commands and their options", commands),
    ],
)
def test_a_table_lists_what_the_code_has(
    title: str, found: Callable[[], Iterable[str]]
) -> None:
    assert sorted(names("names.md", title)) == sorted(found())


@pytest.mark.parametrize("name", names("names.md", "To import"))
def test_the_name_can_be_imported(name: str) -> None:
    assert pkgutil.resolve_name(name)


def test_all_that_testing_exports_is_listed() -> None:
    prefix = "django_lettermint.testing."
    exported = {prefix + name for name in django_lettermint.testing.__all__}

    assert exported <= {*names("names.md", "To import")}


def test_every_header_is_listed() -> None:
    extras = extract_extras(dict.fromkeys(names("names.md", "Headers"), "1"))

    # A metadata header's key is the star.
    assert extras == (
        {"route": "1", "tag": "1", "metadata": {"*": "1"}, "idempotency_key": "1"},
        {},
    )


def test_the_attributes_of_errors_are_listed() -> None:
    listed = names("names.md", "Attributes of errors")
    for kind, _, attribute in (name.rpartition(".") for name in listed):
        assert hasattr(ERRORS[kind or "LettermintError"], attribute)
    found = {name for kind in ERRORS.values() for name in vars(kind) if name[0] != "_"}

    assert found - {name.rpartition(".")[2] for name in listed} == INTERNAL


@pytest.mark.urls("tests.webhook_urls")
def test_the_backend_has_the_attributes_and_the_urls_have_the_names() -> None:
    backend = EmailBackend(api_token="lm_test_token")

    assert all(
        hasattr(backend, name) for name in names("names.md", "Attributes of a backend")
    )
    assert all(map(reverse, names("names.md", "URL names")))
