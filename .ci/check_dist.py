"""Install the built wheel and sdist in empty environments, and use them there.

    python .ci/check_dist.py FOLDER [PYTHON ...]

Each PYTHON, such as 3.14, gets an environment for the wheel and one for the sdist, where it sends
a mail. Without any, the Python that runs this is used. The first one also uses the wheel
without extras, and runs some tests from the unpacked sdist.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

IN_WHEEL = {
    "django_lettermint/__init__.py",
    "django_lettermint/py.typed",
    "django_lettermint/management/__init__.py",
    "django_lettermint/management/commands/__init__.py",
    # Named like a test, so it is easily left out.
    "django_lettermint/management/commands/test_lettermint.py",
    "django_lettermint/testing/__init__.py",
    "django_lettermint/testing/relay.py",
    "django_lettermint/testing/fixtures.py",
    "django_lettermint/testing/inbox/static/inbox.js",
    "django_lettermint/testing/inbox/static/style.css",
    "django_lettermint/testing/inbox/templates/page.html",
}
IN_SDIST = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "docs/conf.py",
    "example_project/manage.py",
    "pyproject.toml",
    "tests/settings.py",
    "tox.ini",
}

SETTINGS = """
SECRET_KEY = "dist"
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
SEND = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
from django.core.mail import send_mail
from django.test import override_settings
from django_lettermint.testing import Relay
with Relay() as relay, override_settings(**relay.settings()):
    send_mail("Hello", "It works.", "shop@example.com", ["ada@example.com"])
    [mail] = relay.messages
assert mail.headers["Subject"] == "Hello"
assert mail.recipients == ("ada@example.com",)
"""
WHERE = "import django_lettermint as d; print(d.__version__, d.__file__)"

#: Tests of pure code, of one connection, and of the quick start.
SDIST_TESTS = ("tests/extras", "tests/smtp", "tests/docs/test_readme.py")
QUICK = "not applications and not external and not slow and not workers and not browser"


def main() -> None:
    """Check the one wheel and the one sdist in the folder given."""
    folder, *versions = sys.argv[1:]
    (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    check_contents(wheel, sdist)
    check_description(wheel)
    for number, version in enumerate(versions or [sys.executable]):
        for archive in (wheel, sdist):
            with tempfile.TemporaryDirectory() as scratch:
                place = Path(scratch)
                python = make_environment(version, place)
                if number == 0 and archive is wheel:
                    check_without_extras(archive, python, place)
                check_mail(archive, python, place)
                if number == 0 and archive is sdist:
                    check_tests(archive, python, place)
    print(f"{wheel.name} and {sdist.name}: good")


def check_contents(wheel: Path, sdist: Path) -> None:
    """Compare the archives with what must, and what must not, be in them."""
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    missing = sorted((IN_WHEEL - in_wheel) | (IN_SDIST - in_sdist))
    assert not missing, f"missing in wheel or sdist: {missing}"
    tops = {name.partition("/")[0] for name in in_wheel}
    strays = {top for top in tops if not top.startswith("django_lettermint")}
    assert not strays, f"would be installed beside the package: {sorted(strays)}"


def check_description(wheel: Path) -> None:
    """Find links and pictures that do not work on the index's page."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    assert "Project-URL: Documentation, https://" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    relative = [link for link in links if not link.startswith("https://")]
    assert links, "the description has no links"
    assert not relative, f"relative links in the description: {relative}"


def make_environment(version: str, folder: Path) -> Path:
    """Make an empty environment and a small project; return the interpreter."""
    venv = folder / "venv"
    run(sys.executable, "-m", "virtualenv", "-q", "-p", version, venv, cwd=folder)
    (folder / "settings.py").write_text(SETTINGS)
    (folder / "manage.py").write_text(MANAGE)
    return venv / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def check_without_extras(archive: Path, python: Path, folder: Path) -> None:
    """Run the checks, a command and pytest with what the package requires only."""
    strict = (python, "-W", "error")
    run(*install(python), archive.resolve(), "pytest", cwd=folder)
    run(*strict, "manage.py", "check", cwd=folder)
    usage = run(*strict, "manage.py", "test_lettermint", "--help", cwd=folder)
    assert "--scan-ports" in usage, usage
    # Every pytest run of a user loads the plugin, also without the extra `testing`.
    (folder / "test_nothing.py").write_text("def test_nothing(): pass\n")
    run(*strict, "-m", "pytest", "-q", "test_nothing.py", cwd=folder)


def check_mail(archive: Path, python: Path, folder: Path) -> None:
    """Send a mail to a relay."""
    run(*install(python), f"{archive.resolve()}[testing]", cwd=folder)
    version, file = run(python, "-c", WHERE, cwd=folder).split()
    assert f"-{version}" in archive.name, f"{archive.name} holds version {version}"
    assert Path(file).is_relative_to(folder / "venv"), f"imported from {file}"
    run(python, "-W", "error", "-c", SEND, cwd=folder)


def check_tests(sdist: Path, python: Path, folder: Path) -> None:
    """Run some of the quick tests in the unpacked sdist."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.glob("django_lettermint_smtp-*")
    extras = ".[testing,webhooks,dns,tasks]"
    run(*install(python), extras, "--group", "test", cwd=source)
    pytest = (python, "-m", "pytest", "-q", "-m", QUICK)
    print(run(*pytest, *SDIST_TESTS, cwd=source).splitlines()[-1])


def install(python: Path) -> tuple[str | Path, ...]:
    """Return the beginning of a command that installs something."""
    return (python, "-m", "pip", "install", "--quiet")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command in a folder and return its output; show it if it fails."""
    print("$", *(str(each).strip().partition("\n")[0] for each in command), flush=True)
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
