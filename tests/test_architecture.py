"""The way through the house: imports point up the table of modules, never down."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

import django_lettermint

PACKAGE = Path(django_lettermint.__file__).parent

#: Each module may import those before it; the edges come last.
ORDER = (
    "exceptions",
    "results",
    "signals",
    "secret",
    "extras",
    "message",
    "rules",
    "suggestions",
    "send_defaults",
    "options",
    "queue_options",
    "lookup",
    "conf",
    "mime",
    "envelope",
    "replies",
    "wire",
    "resolver",
    "attempt",
    "pipeline",
    "transfer",
    "smtp",
    "talk",
    "login",
    "connect",
    "lease",
    "pool_stats",
    "slots",
    "connection_pool",
    "pool",
    "transaction",
    "delivery",
    "verdict",
    "payload",
    "report",
    "lanes",
    "backend",
    "checks",
    "apps",
    "webhooks",
    "urls",
    "queued",
    "rebuilt",
    "worker",
    "send_task",
    "tasks",
    "testing",
    "management",
)

#: Modules that work without these packages, so that they can be read and tested alone.
FREE_OF = {
    "anymail": {
        "attempt",
        "connect",
        "connection_pool",
        "delivery",
        "envelope",
        "extras",
        "lease",
        "mime",
        "pool",
        "pool_stats",
        "replies",
        "resolver",
        "slots",
        "smtp",
        "talk",
        "transaction",
        "transfer",
        "verdict",
        "wire",
    },
    "django": {
        "envelope",
        "extras",
        "lease",
        "pool_stats",
        "replies",
        "resolver",
        "slots",
        "wire",
    },
}


#: Options are found in one place; the system checks look at Django's mail settings too,
#: and messages are written by those that Django writes by.
READERS_OF_SETTINGS = {"lookup", "checks", "mime"}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def runtime_nodes(node: ast.AST) -> list[ast.AST]:
    """Walk a tree, but for what only type checkers see."""
    if is_type_checking(node):
        return []
    children = [runtime_nodes(child) for child in ast.iter_child_nodes(node)]
    return [node, *(found for nodes in children for found in nodes)]


def imports(source: str, package: str, *, runtime: bool) -> set[str]:
    """Return the absolute dotted names that a module of `package` imports."""
    tree = ast.parse(source)
    found: set[str] = set()
    for node in runtime_nodes(tree) if runtime else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name(
                "." * node.level + (node.module or ""), package
            )
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def imported_modules(source: str, package: str = "django_lettermint") -> set[str]:
    """Return the first-level modules of ours that a source imports at runtime."""
    names = (name.split(".") for name in imports(source, package, runtime=True))
    return {
        parts[1] for parts in names if parts[0] == "django_lettermint" and parts[1:]
    }


def downward(module: str, imported: set[str]) -> set[str]:
    """Return the imports that point down the table."""
    own = ORDER.index(module)
    known = imported & set(ORDER)
    return {name for name in known if ORDER.index(name) > own}


def sources() -> list[tuple[str, str, str]]:
    """List (first-level module, package it lies in, source) of every file of ours."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts != (PACKAGE.name, "__init__"):
            found.append((parts[1], ".".join(parts[:-1]), path.read_text()))
    return found


SOURCES = [
    pytest.param(*entry, id=f"{number}-{entry[1]}-{entry[0]}")
    for number, entry in enumerate(sources())
]


@pytest.mark.parametrize(("module", "package", "source"), SOURCES)
def test_a_module_imports_only_what_stands_before_it(
    module: str, package: str, source: str
) -> None:
    assert module in ORDER, "give the new module its place in ORDER"
    assert downward(module, imported_modules(source, package)) == set()


@pytest.mark.parametrize(("module", "package", "source"), SOURCES)
def test_a_core_module_imports_no_foreign_framework(
    module: str, package: str, source: str
) -> None:
    names = imports(source, package, runtime=False)
    foreign = {name.partition(".")[0] for name in names}
    assert {name for name in foreign if module in FREE_OF.get(name, ())} == set()


@pytest.mark.parametrize(("module", "package", "source"), SOURCES)
def test_settings_are_read_in_one_place(module: str, package: str, source: str) -> None:
    reads = "django.conf.settings" in imports(source, package, runtime=False)
    assert not reads or module in READERS_OF_SETTINGS


def test_importing_the_package_imports_nothing_else() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    assert imports(source, "django_lettermint", runtime=False) <= {
        "__future__.annotations"
    }


@pytest.mark.parametrize(("module", "package", "source"), SOURCES)
def test_a_module_and_its_functions_can_be_taken_in_at_a_glance(
    module: str, package: str, source: str
) -> None:
    # What can only be explained together stands together.
    long = {"connection_pool", "payload", "mime", "extras"}
    assert source.count("\n") <= (400 if module in long else 250)
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    too_long = {each.name for each in functions if body_lines(each) > 30}
    assert too_long == set()


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count lines from the first statement to the last, the docstring apart."""
    start = function.body[ast.get_docstring(function) is not None :]
    return (start[-1].end_lineno or 0) - start[0].lineno + 1 if start else 0


def test_no_module_has_a_name_that_could_hold_anything() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert names.isdisjoint({"base", "common", "helpers", "misc", "tools", "utils"})


@pytest.mark.parametrize(
    ("package", "line", "found"),
    [
        ("django_lettermint", "from .backend import EmailBackend", {"backend"}),
        ("django_lettermint", "from . import backend, conf", {"backend", "conf"}),
        ("django_lettermint", "import django_lettermint.pool", {"pool"}),
        ("django_lettermint", "from django_lettermint import pool", {"pool"}),
        ("django_lettermint", "def f():\n    from .tasks import send", {"tasks"}),
        ("django_lettermint.testing", "from ..conf import Secret", {"conf"}),
        ("django_lettermint.testing", "from .relay import Relay", {"testing"}),
        ("django_lettermint", "if TYPE_CHECKING:\n    from .backend import E", set()),
        ("django_lettermint", "from anymail import signals", set()),
    ],
)
def test_every_way_to_import_a_module_is_seen(
    package: str, line: str, found: set[str]
) -> None:
    assert imported_modules(line, package) == found


def test_an_import_of_a_later_module_is_found() -> None:
    assert downward("smtp", {"conf", "wire", "backend", "testing"}) == {
        "backend",
        "testing",
    }
