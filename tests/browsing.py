"""Start the example's website in a process, and take pictures of pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

SERVE = Path(__file__).parent.parent / "example_project" / "serve.py"
# Otherwise, Debian's Chromium contacts its vendor's servers.
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def serving(database: Path, **environment: object) -> Iterator[str]:
    """Run the site in a process and yield its address."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LETTERMINT_", "DJANGO_"))
    }
    own = {name: str(value) for name, value in environment.items()}
    process = subprocess.Popen(
        [sys.executable, str(SERVE), "--port", "0", "--inbox-port", "0"],
        env=inherited | own | {"EXAMPLE_DATABASE": str(database)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            # In the second line, or nothing if the process has exited.
            said = process.stdout.readline() + process.stdout.readline()
            address = re.search(r"^Open (http://\S+)", said, re.MULTILINE)
            assert address, said
            yield address[1]
        finally:
            process.terminate()


def picture(page: Page, where: Path, name: str, *, full: bool = False) -> None:
    """Take two: on a desktop, and on a phone in the dark."""
    page.screenshot(path=where / f"{name}.png", full_page=full, animations="disabled")
    use_phone(page)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=where / f"phone-{name}.png", animations="disabled")


def use_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
