"""The package on systems where Python lacks what only Unix has."""

from __future__ import annotations

import os
import subprocess
import sys

IMPORT_ALL = """
import os, select, signal, socket, sys
import django

# Whatever needs them to run the tests here is imported before.
django.setup()

UNIX_ONLY = {
    os: "fork forkpty register_at_fork getuid geteuid getgid getppid killpg setsid uname "
        "mkfifo posix_spawn wait3 wait4 statvfs sysconf pread pwrite sched_yield",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 alarm pause "
            "pthread_kill pthread_sigmask setitimer siginterrupt sigwait sigpending",
    socket: "AF_UNIX MSG_DONTWAIT MSG_NOSIGNAL SO_REUSEPORT recv_fds send_fds",
    select: "epoll poll",
}
ours = [name for name in sys.modules if name.startswith("django_lettermint")]
for name in ours:
    del sys.modules[name]
for module, names in UNIX_ONLY.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None

from importlib import import_module
from pkgutil import walk_packages

import django_lettermint

for module in walk_packages(django_lettermint.__path__, "django_lettermint."):
    import_module(module.name)
print("imported", module.name)
"""


def test_every_module_can_be_imported_without_names_that_only_unix_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )

    assert done.stdout.startswith("imported"), done.stderr
