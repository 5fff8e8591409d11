"""A real Postfix with an instance directory of its own, for tests that need a server nobody here wrote.

    with Postfix() as postfix:
        backend = EmailBackend(**postfix.options())
        ...
        assert [mail.recipient for mail in postfix.delivered()] == ["bob@example.org"]

It takes mail to `DOMAIN` into one maildir, and nothing leaves this machine. Three ports:
"tls", "starttls" and "bare", which is STARTTLS with as few extensions as Postfix can have.
"""

from __future__ import annotations

import email
import email.policy
import os
import pwd
import random
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage as Mime
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.certificates import NAMES, authority, ca_file
from tests.zoo.postfix_config import (
    DOMAIN,
    MAIN_CF,
    MASTER_CF,
    REALM,
    RECIPIENT_LIMIT,
    SASL_CONF,
    SIZE_LIMIT,
    TOKEN,
    USER,
)

#: Below those that systems hand out, so that nobody gets one of them by chance. Postfix
#: cannot choose a port by itself; one that is taken makes it end, and another is tried.
PORTS = range(20000, 30000)

SERVICES = ("tls", "starttls", "bare")
_EVENT = re.compile(r"(postfix/[\w/]+)\[\d+\]: (.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A file of the maildir."""

    #: Its number in the queue; each message that Postfix took has one of its own.
    queue_id: str
    recipient: str
    mime: Mime


class Postfix:
    """Run Postfix on loopback between start and stop; leaving the block removes it all."""

    def __enter__(self) -> Self:
        self.ports: dict[str, int] = {}
        #: What Postfix logged, without time and host.
        self.log: list[str] = []
        self._logged = threading.Condition()
        _insist_on("postfix", "saslpasswd2")
        assert os.geteuid() == 0, "Postfix starts as root only: run these tests as root"
        self._root = Path(tempfile.mkdtemp(prefix="postfix-"))
        try:
            self._set_up()
            self.start()
        except BaseException:
            shutil.rmtree(self._root)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._root)

    def options(self, service: str = "tls", **others: object) -> dict[str, object]:
        """Return the backend options that reach this server, and the others given."""
        return {
            "api_token": TOKEN,
            "host": "127.0.0.1",
            "port": self.ports[service],
            "security": "tls" if service == "tls" else "starttls",
            "ca_file": ca_file(),
            # Postfix knows no keys: a repeat would be a second mail.
            "idempotency": False,
            **others,
        }

    def start(self) -> None:
        """Start, on the same ports as before if there was a before."""
        for _ in range(20):
            ports = self.ports or dict(
                zip(SERVICES, random.sample(PORTS, 3), strict=True)
            )
            if self._listens_on(ports):
                self.ports = ports
                return
        raise AssertionError("Postfix does not start:\n" + "\n".join(self.log[-20:]))

    def stop(self) -> None:
        """End all its processes; what is in the queue stays there."""
        self._master.terminate()
        self._master.wait(10)
        self._reader.join(10)
        assert not self._reader.is_alive(), "a process of Postfix does not end"

    def _listens_on(self, ports: dict[str, int]) -> bool:
        self._write(
            "config/master.cf", MASTER_CF, recipient_limit=RECIPIENT_LIMIT, **ports
        )
        # It makes the queue's directories, too.
        _output("postfix", "-c", f"{self._root}/config", "check")
        seen = len(self.log)
        # Its own session: it stops its children by signalling the process group.
        self._master = subprocess.Popen(
            [_output("postconf", "-h", "daemon_directory") + "/master", "-s"],
            env={**os.environ, "MAIL_CONFIG": f"{self._root}/config"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._master,))
        self._reader.start()
        settled = "daemon started|postfix ended|fatal:"
        try:
            self.wait_for(lambda: self.logged(settled, seen) > 0)
        except BaseException:
            self.stop()
            raise
        if self.logged("postfix ended|fatal:", seen):
            self.stop()
            return False
        return True

    def _set_up(self) -> None:
        mailbox_user = pwd.getpwnam("nobody").pw_uid
        # mkdtemp's mode would keep Postfix's own users out.
        self._root.chmod(0o755)
        for name in ("config", "config/sasl", "queue", "data", "mail"):
            (self._root / name).mkdir(mode=0o755)
        shutil.chown(self._root / "data", "postfix")
        shutil.chown(self._root / "mail", mailbox_user)
        self._write(
            "config/main.cf",
            MAIN_CF,
            domain=DOMAIN,
            realm=REALM,
            size_limit=SIZE_LIMIT,
            uid=mailbox_user,
        )
        chain = authority().issue_cert(*NAMES).private_key_and_cert_chain_pem
        chain.write_to_path(self._root / "config/chain.pem")
        self._write("config/sasl/smtpd.conf", SASL_CONF)
        database = self._root / "config/sasl/sasldb2"
        _output(
            *("saslpasswd2", "-p", "-c", "-f", str(database), "-u", REALM, USER),
            say=TOKEN,
        )
        shutil.chown(database, "postfix")

    def _write(self, name: str, text: str, **values: object) -> None:
        (self._root / name).write_text(text.format(root=self._root, **values))

    def _read_log(self, master: subprocess.Popen[str]) -> None:
        assert master.stdout
        with master.stdout:
            for line in master.stdout:
                found = _EVENT.search(line)
                self._note(f"{found[1]}: {found[2]}" if found else line.rstrip())
        # A port that is taken ends it without a word here.
        self._note("postfix ended")

    def _note(self, event: str) -> None:
        with self._logged:
            self.log.append(event)
            self._logged.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until a condition holds, which is looked at whenever Postfix logs something."""
        with self._logged:
            assert self._logged.wait_for(condition, timeout), "\n".join(self.log[-20:])

    def logged(self, pattern: str, seen: int = 0) -> int:
        """Count the lines of the log that match, those already seen left out."""
        return sum(bool(re.search(pattern, line)) for line in self.log[seen:])

    def delivered(self) -> list[Delivered]:
        """Wait until nothing is in the queue, and return all that is in the maildir."""
        self.wait_for(self._queue_is_empty)
        return [_parse(file.read_bytes()) for file in self._mailbox()]

    def forget(self) -> None:
        """Empty queue, maildir and log."""
        self.wait_for(self._queue_is_empty)
        for file in self._mailbox():
            file.unlink()
        with self._logged:
            self.log.clear()

    def _mailbox(self) -> list[Path]:
        return list((self._root / "mail/all/new").glob("*"))

    def _queue_is_empty(self) -> bool:
        # In the order that mails pass them, lest one slip by between two looks.
        queue = self._root / "queue"
        stages = (queue / name for name in ("incoming", "active", "deferred"))
        return not any(path.is_file() for stage in stages for path in stage.rglob("*"))


def _parse(raw: bytes) -> Delivered:
    # Postfix's own lines come first.
    queue_id = re.search(r"^\tby .* id (\w+)", raw.decode(), re.MULTILINE)
    recipient = re.search(r"^Delivered-To: (.*)$", raw.decode(), re.MULTILINE)
    assert queue_id, raw[:1000]
    assert recipient, raw[:1000]
    mime = email.message_from_bytes(raw, policy=email.policy.default)
    return Delivered(queue_id=queue_id[1], recipient=recipient[1], mime=mime)


def _insist_on(*programs: str) -> None:
    for program in programs:
        assert shutil.which(program), (
            f"{program} is missing: apt-get install $(cat .ci/debian-packages.txt)"
        )


def _output(*command: str, say: str | None = None) -> str:
    done = subprocess.run(
        command, input=say, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()
