"""Use a built wheel as a stranger would: in an empty environment, in another folder."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

IN_WHEEL = {
    "django_lettermint/__init__.py",
    "django_lettermint/py.typed",
    "django_lettermint/management/__init__.py",
    "django_lettermint/management/commands/__init__.py",
    # Named like a test, and easily left out for it.
    "django_lettermint/management/commands/test_lettermint.py",
    "django_lettermint/testing/__init__.py",
    "django_lettermint/testing/relay.py",
    "django_lettermint/testing/fixtures.py",
    "django_lettermint/testing/inbox/static/inbox.js",
    "django_lettermint/testing/inbox/static/style.css",
    "django_lettermint/testing/inbox/templates/page.html",
}
IN_SDIST = {"pyproject.toml", "tox.ini", "LICENSE", "README.md", "tests/settings.py"}

SETTINGS = """
SECRET_KEY = "wheel"
INSTALLED_APPS = ["django_lettermint"]
LETTERMINT_API_TOKEN = "not-a-token"
LETTERMINT = "django_lettermint.backend.EmailBackend"
import django
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": LETTERMINT}}
else:
    EMAIL_BACKEND = LETTERMINT
"""
MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
WHERE = "import django_lettermint as d; print(d.__version__, d.__file__)"


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare the archives with what must, and what must not, be in them."""
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    missing = sorted((IN_WHEEL - in_wheel) | (IN_SDIST - in_sdist))
    assert not missing, f"missing in wheel or sdist: {missing}"
    tops = {name.partition("/")[0] for name in in_wheel}
    strays = {top for top in tops if not top.startswith("django_lettermint")}
    assert not strays, f"would land in site-packages: {sorted(strays)}"


def check_description(wheel: Path) -> None:
    """Look for links and pictures that lead nowhere on the index's page."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    assert "Project-URL: Documentation, https://" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    relative = [link for link in links if not link.startswith("https://")]
    assert links, "the description has no links"
    assert not relative, f"relative links in the description: {relative}"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command in another folder and return what it printed; show it if it fails."""
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}")
    return done.stdout


def check_use(wheel: Path, folder: Path) -> None:
    """Install the wheel without extras, import it, and run a tiny project with it."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    project = folder / "project"
    project.mkdir()
    (project / "settings.py").write_text(SETTINGS)
    (project / "manage.py").write_text(MANAGE)

    run(python, "-m", "pip", "install", "--quiet", wheel.resolve(), cwd=project)
    version, file = run(python, "-c", WHERE, cwd=project).split()
    assert f"-{version}-" in wheel.name, f"{wheel.name} holds version {version}"
    assert Path(file).is_relative_to(folder), f"imported from {file}"

    strict = (python, "-W", "error", "manage.py")
    run(*strict, "check", cwd=project)
    usage = run(*strict, "test_lettermint", "--help", cwd=project)
    assert "--scan-ports" in usage, usage

    # The fixture's plugin loads in every pytest run of the users, whether or not they
    # installed the extra `testing`.
    run(python, "-m", "pip", "install", "--quiet", "pytest", cwd=project)
    (project / "test_nothing.py").write_text("def test_nothing(): pass\n")
    run(python, "-m", "pytest", "-W", "error", "-q", cwd=project)


def main() -> None:
    """Check the one wheel and the one sdist in the folder given."""
    dist = Path(sys.argv[1])
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    check_contents(wheel, sdist)
    check_description(wheel)
    with tempfile.TemporaryDirectory() as folder:
        check_use(wheel, Path(folder))
    print(f"{wheel.name} and {sdist.name}: good")


if __name__ == "__main__":
    main()
