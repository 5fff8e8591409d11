"""The writer uses public names of Python and Django only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import django_lettermint

PACKAGE = Path(django_lettermint.__file__).parent
SOURCES = {
    str(path.relative_to(PACKAGE)): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
FOREIGN = re.compile(r"(?:email|django)(?:\.|$)")
#: Methods of Python's generators, policies and messages, and of Django's messages.
HOOK = re.compile(
    r"_(?:handle|write|fold|dispatch|new_buffer|payload|headers|add|create|set)\w*"
)


@pytest.mark.parametrize("name", SOURCES)
def test_no_private_name_of_email_or_django_is_imported(name: str) -> None:
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.ImportFrom) and FOREIGN.match(node.module or ""):
            assert not any(alias.name.startswith("_") for alias in node.names)
            assert "._" not in f".{node.module}"
        if isinstance(node, ast.Import):
            assert not any("._" in alias.name for alias in node.names)


@pytest.mark.parametrize("name", [each for each in SOURCES if each.startswith("mime")])
def test_no_private_name_of_email_or_django_is_overridden_or_used(name: str) -> None:
    tree = ast.parse(SOURCES[name])
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            assert not any(HOOK.fullmatch(method.name) for method in methods)
        if isinstance(node, ast.Attribute):
            assert not re.match("_[^_]", node.attr), f"line {node.lineno}: {node.attr}"
