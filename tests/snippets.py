"""Run the Python that README and docs show.

    ```python            runs
    ```python no-run     is only compiled: it needs a service, or is incomplete

A snippet with ... in it is only compiled, too.

A snippet that, apart from imports, only sets names in upper case is settings: they are checked
and a mail is sent with them, and they apply to the snippets below the same heading. A snippet
with tests or fixtures is a file, named by its first line, which pytest runs in a project of its
own. All others of a page run in order, in one namespace. Settings send to a local relay.
"""

from __future__ import annotations

import ast
import asyncio
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from anymail.signals import inbound, post_send, pre_send, tracking

from django_lettermint.signals import message_failed, message_sent

if TYPE_CHECKING:
    from django_lettermint.testing import Relay

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: All pages of documentation.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "example_project" / "README.md",
    *sorted(DOCS.glob("*.md")),
]
SIGNALS = (message_sent, message_failed, tracking, inbound, pre_send, post_send)

_FENCE = re.compile(r"^( *)```python(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
_FILE = re.compile(r"# (\S+\.py)\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """One block of Python, and its place."""

    page: Path
    line: int
    heading: str
    code: str
    #: What follows the word python.
    mark: str

    @property
    def runs(self) -> bool:
        """Return whether it can run: it is complete and needs only a relay."""
        return not self.mark and not any(
            isinstance(node, ast.Constant) and node.value is ...
            for node in ast.walk(self._tree())
        )

    @property
    def is_settings(self) -> bool:
        """Return whether it only sets names in upper case, apart from imports."""
        body = [each for each in self._tree().body if not isinstance(each, ast.Import)]
        return bool(body) and all(
            isinstance(node, ast.Assign)
            and all(
                isinstance(target, ast.Name) and target.id.isupper()
                for target in node.targets
            )
            for node in body
        )

    @property
    def is_test(self) -> bool:
        """Return whether pytest runs it."""
        return "def test_" in self.code or "@pytest.fixture" in self.code

    @property
    def file(self) -> str:
        """Return the path that its first line names."""
        found = _FILE.match(self.code)
        assert found, f"{self.page}:{self.line}: the first line names no file"
        return found[1]

    def run(self, names: dict[str, Any]) -> dict[str, Any]:
        """Run it with these names, add what it defines to them, and return that."""
        before = dict(names)
        names.setdefault("__name__", "snippets")
        awaited = eval(self.compile(), names)
        if awaited:
            asyncio.run(awaited)
        return {
            name: value
            for name, value in names.items()
            if name not in ("__builtins__", "__name__")
            and (name not in before or value is not before[name])
        }

    def compile(self) -> CodeType:
        """Compile it, `await` at the top included; errors name the page and line."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: CodeType = compile(self._tree(), str(self.page), "exec", flags=flags)
        return code

    def _tree(self) -> ast.Module:
        tree = ast.parse(self.code, str(self.page))
        ast.increment_lineno(tree, self.line)
        return tree


def read(page: Path) -> list[Snippet]:
    """Return a page's snippets in order."""
    text = page.read_text("utf-8")
    headings = list(_headings(text))
    return [
        Snippet(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            heading=[name for at, name in headings if at < match.start()][-1],
            code=textwrap.dedent(match[3]),
            mark=_mark(match[2]),
        )
        for match in _FENCE.finditer(text)
    ]


def _headings(text: str) -> Iterator[tuple[int, str]]:
    """Yield the position and text of each heading, but not comments in code."""
    at, in_fence = 0, False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("```"):
            in_fence = not in_fence
        elif line.startswith("#") and not in_fence:
            yield at, line.strip("# \n")
        at += len(line)


def _mark(text: str) -> str:
    assert text in ("", " no-run"), f"```python{text}: the only mark is no-run"
    return text.strip()


def snippet(page: Path, text: str) -> Snippet:
    """Return the only snippet of a page that contains a text."""
    found = [each for each in read(page) if text in each.code]
    assert len(found) == 1, f"{page}: {len(found)} snippets have {text!r}"
    return found[0]


def under(page: Path, heading: str) -> list[Snippet]:
    """Return the snippets below a heading that run and are not settings."""
    found = [each for each in read(page) if each.heading == heading]
    assert found, f"{page}: nothing below {heading!r}"
    return [each for each in found if each.runs and not each.is_settings]


def where(relay: Relay) -> Mapping[str, object]:
    """Return the settings that lead to the relay, without the token."""
    settings = relay.settings()
    del settings["LETTERMINT_API_TOKEN"]
    return settings


@contextmanager
def receivers_forgotten() -> Iterator[None]:
    """Disconnect the receivers that are connected in the block."""
    before = [list(signal.receivers) for signal in SIGNALS]
    try:
        yield
    finally:
        for signal, receivers in zip(SIGNALS, before, strict=True):
            signal.receivers = receivers
            signal.sender_receivers_cache.clear()
