"""docs/names.md lists every public name."""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from django.core.management import load_command_class
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
#: Attributes of errors that tell this package's own code what to do.
INTERNAL = {"with_reply", "phase", "step", "limits_connections"}
#: Of Django's own commands, which ours inherit.
INHERITED = {
    "help",
    "version",
    "verbosity",
    "settings",
    "pythonpath",
    "traceback",
    "no_color",
    "force_color",
    "skip_checks",
}


def names(title: str) -> list[str]:
    return TABLES[title]


def commands() -> set[str]:
    """Return our commands, and each with each of its arguments."""
    found = set()
    folder = Path(django_lettermint.__file__).parent / "management" / "commands"
    for module in pkgutil.iter_modules([str(folder)]):
        command = load_command_class("django_lettermint", module.name)
        found.add(module.name)
        for action in command.create_parser("manage.py", module.name)._actions:
            spelled = action.option_strings or [action.dest]
            if action.dest not in INHERITED:
                found.add(f"{module.name} {spelled[0]}")
    return found


def test_every_row_is_understood() -> None:
    rows = re.findall(r"^\| `", TEXT, re.MULTILINE)

    assert len(rows) == sum(map(len, TABLES.values()))


@pytest.mark.parametrize("name", names("To import"))
def test_the_name_can_be_imported(name: str) -> None:
    assert pkgutil.resolve_name(name)


def test_all_that_testing_exports_is_listed() -> None:
    prefix = "django_lettermint.testing."
    listed = {
        name.removeprefix(prefix)
        for name in names("To import")
        if name.startswith(prefix)
    }

    modules = {
        "backend.EmailBackend",
        "fixtures.lettermint_outbox",
        "fixtures.lettermint_relay",
        "inbox.Inbox",
    }
    assert listed == {*django_lettermint.testing.__all__, *modules}


@pytest.mark.parametrize(
    ("title", "options"),
    [
        ("Options", OPTIONS),
        ("Keys of `pool`", POOL_OPTIONS),
        ("Options of the queueing backend", QUEUE_OPTIONS),
    ],
)
def test_every_option_is_listed(title: str, options: dict[str, object]) -> None:
    assert names(title) == list(options)


@pytest.mark.parametrize("kind", [SendResult, RecipientResult])
def test_every_field_of_a_result_is_listed(kind: type[object]) -> None:
    listed = names(f"Fields of `{kind.__name__}`")

    assert listed == list(inspect.signature(kind).parameters)


def test_every_header_is_listed() -> None:
    extras = extract_extras(dict.fromkeys(names("Headers"), "1"))

    # A metadata header's key is the star.
    assert extras == (
        {"route": "1", "tag": "1", "metadata": {"*": "1"}, "idempotency_key": "1"},
        {},
    )


def test_every_error_is_listed() -> None:
    errors = [
        name
        for name, value in vars(exceptions).items()
        if inspect.isclass(value)
        and value.__module__ == exceptions.__name__
        and not name.startswith("_")
    ]

    assert names("Errors") == errors


@pytest.mark.parametrize("name", names("Attributes of errors"))
def test_the_error_has_the_attribute(name: str) -> None:
    kind, _, attribute = name.rpartition(".")

    assert hasattr(getattr(exceptions, kind or "LettermintError"), attribute)


def test_every_attribute_of_an_error_is_listed() -> None:
    listed = {name.rpartition(".")[2] for name in names("Attributes of errors")}
    found = {
        attribute
        for kind in names("Errors")
        for attribute in vars(getattr(exceptions, kind))
        if not attribute.startswith("_")
    }

    assert found - listed == INTERNAL


@pytest.mark.parametrize("name", names("Attributes of a backend"))
def test_the_backend_has_the_attribute(name: str) -> None:
    assert hasattr(EmailBackend(api_token="lm_test_token"), name)


@pytest.mark.parametrize("name", names("Arguments without a setting"))
def test_the_keyword_is_understood_and_is_no_setting(name: str) -> None:
    assert name not in OPTIONS
    EmailBackend(api_token="lm_test_token", **{name: "another"})


def test_every_command_and_argument_is_listed() -> None:
    assert set(names("Commands and their options")) == commands()


@pytest.mark.urls("tests.webhook_urls")
@pytest.mark.parametrize("name", names("URL names"))
def test_the_url_name_reverses(name: str) -> None:
    assert reverse(name)


def test_every_check_is_listed() -> None:
    assert names("Checks") == list(Id)
