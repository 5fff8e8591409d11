"""docs/names.md, the list of public names, is complete and true."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from django.urls import reverse

import django_lettermint.testing
from django_lettermint import exceptions
from django_lettermint.backend import EmailBackend
from django_lettermint.checks import Id
from django_lettermint.conf import OPTIONS, POOL_OPTIONS, QUEUE_OPTIONS
from django_lettermint.extras import extract_extras
from django_lettermint.results import RecipientResult, SendResult
from tests.snippets import DOCS

ROW = re.compile(r"^\| `(.+?)` \|$", re.MULTILINE)
TEXT = (DOCS / "names.md").read_text("utf-8")
TABLES = {
    title: ROW.findall(section)
    for title, _, section in (
        part.partition("\n") for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    )
}
#: Attributes of errors that this package itself uses.
INTERNAL = {"with_reply", "phase", "step", "limits_connections"}


def errors() -> list[str]:
    return [
        name
        for name, value in vars(exceptions).items()
        if inspect.isclass(value)
        and value.__module__ == exceptions.__name__
        and not name.startswith("_")
    ]


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
        ("Errors", errors),
        ("Checks", lambda: Id),
        ("Commands and their options", commands),
    ],
)
def test_a_table_lists_what_the_code_has(
    title: str, found: Callable[[], Iterable[str]]
) -> None:
    assert sorted(TABLES[title]) == sorted(found())


@pytest.mark.parametrize("name", TABLES["To import"])
def test_the_name_can_be_imported(name: str) -> None:
    assert pkgutil.resolve_name(name)


def test_all_that_testing_exports_is_listed() -> None:
    prefix = "django_lettermint.testing."
    exported = {prefix + name for name in django_lettermint.testing.__all__}

    assert exported <= {*TABLES["To import"]}


def test_every_header_is_listed() -> None:
    extras = extract_extras(dict.fromkeys(TABLES["Headers"], "1"))

    # A metadata header's key is the star.
    assert extras == (
        {"route": "1", "tag": "1", "metadata": {"*": "1"}, "idempotency_key": "1"},
        {},
    )


@pytest.mark.parametrize("name", TABLES["Attributes of errors"])
def test_the_error_has_the_attribute(name: str) -> None:
    kind, _, attribute = name.rpartition(".")

    assert hasattr(getattr(exceptions, kind or "LettermintError"), attribute)


def test_every_attribute_of_an_error_is_listed() -> None:
    listed = {name.rpartition(".")[2] for name in TABLES["Attributes of errors"]}
    found = {
        attribute
        for kind in errors()
        for attribute in vars(getattr(exceptions, kind))
        if not attribute.startswith("_")
    }

    assert found - listed == INTERNAL


@pytest.mark.parametrize("name", TABLES["Attributes of a backend"])
def test_the_backend_has_the_attribute(name: str) -> None:
    assert hasattr(EmailBackend(api_token="lm_test_token"), name)


@pytest.mark.urls("tests.webhook_urls")
@pytest.mark.parametrize("name", TABLES["URL names"])
def test_the_url_name_reverses(name: str) -> None:
    assert reverse(name)
