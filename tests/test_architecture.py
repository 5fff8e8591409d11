"""Imports follow the layers of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import django_lettermint

PACKAGE = Path(django_lettermint.__file__).parent

#: Folders and top-level modules, here rooms; each one imports those of earlier lines only.
LAYERS = (
    "results exceptions signals",
    "extras",
    "message",
    "conf",
    "mime",
    "envelope",
    "smtp",
    "pool",
    "delivery",
    "outgoing",
    "payload",
    "backend",
    "tasks webhooks checks",
    "send_task worker",
    "apps urls testing",
    "management",
)
#: Queues store the path of the task, which is a name of `tasks`.
OPEN_TO = {"send_task": ("tasks",)}
LEVEL = {room: level for level, line in enumerate(LAYERS) for room in line.split()}
#: Packages that these rooms must not import.
FREE_OF = {
    "extras": ("django", "anymail"),
    "smtp": ("django", "anymail"),
} | dict.fromkeys(("mime", "envelope", "pool", "delivery"), ("anymail",))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    """Return the absolute names that a module imports at runtime."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [node for node in tree.body if not is_type_checking(node)]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
)


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_module_imports_only_rooms_below_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    own = [
        name.split(".")[1:]
        for name in imports(path)
        if name.startswith("django_lettermint.")
    ]
    for target, *inside in own:
        if target == room or target not in LEVEL:
            continue
        assert LEVEL[target] < LEVEL[room], f"{room} imports {target}"
        if target not in OPEN_TO.get(room, ("testing",)):
            assert len(inside) < 2, f"{room} imports inside of {target}"
    names = {name.partition(".")[0] for name in imports(path)}
    assert names.isdisjoint(FREE_OF.get(room, ()))


def test_the_relay_imports_nothing_of_the_package() -> None:
    for path in (PACKAGE / "testing").rglob("*.py"):
        if path == PACKAGE / "testing" / "backend.py":
            continue  # a subclass of the backend, not a part of the relay
        ours = {
            name.split(".")[1]
            for name in imports(path)
            if name.startswith("django_lettermint.")
        }
        assert ours <= {"testing"}


def test_the_table_in_the_documentation_has_all_rooms_in_their_order() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    rows = [re.findall(r"`(\w+)/?`", cell) for cell in cells]
    levels = [max(map(LEVEL.__getitem__, row)) for row in rows if row]

    assert {room for row in rows for room in row} == set(LEVEL)
    assert levels == sorted(levels)
