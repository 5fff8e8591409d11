"""Postfix, with its strictest settings, and with one port that offers few extensions."""

from __future__ import annotations

import email
import email.policy
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage as Mime
from pathlib import Path

from tests.zoo.server import HOST_NAME, TOKEN, USER, Server, require

#: The only domain that it accepts mail for.
DOMAIN = "example.org"
SIZE_LIMIT = 1024 * 1024
#: Recipients that the port "bare" accepts in a transaction.
RECIPIENT_LIMIT = 20

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file_prefixes = {root}
maillog_file = {root}/maillog
# Unique, so that they identify a message.
enable_long_queue_ids = yes
in_flow_delay = 0
# Retry at once what was being delivered when it stopped.
queue_run_delay = 1s
minimal_backoff_time = 1s
transport_retry_time = 1s

myhostname = {host_name}
mydestination =
inet_interfaces = loopback-only
inet_protocols = ipv4
mynetworks = 127.0.0.1/32
message_size_limit = {size_limit}
default_transport = error:5.1.2 nothing leaves this machine
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = regexp:{{{{!/^nobody/ all/}}}}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}

smtpd_tls_chain_files = {root}/config/key.pem, {root}/config/chain.pem
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = {host_name}
cyrus_sasl_config_path = {root}/config/sasl
# Reject at MAIL, not at RCPT.
smtpd_delay_reject = no
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_sender_restrictions = check_sender_access inline:{{{{banned@example.org=REJECT}}}}
smtpd_recipient_restrictions =
    check_recipient_access regexp:{{{{/^later/ 450 4.2.0 later}}}}
    reject_unauth_destination
smtpd_data_restrictions = reject_unauth_pipelining
smtpd_forbid_unauth_pipelining = yes
smtpd_forbid_bare_newline = yes
smtpd_forbid_bare_newline_exclusions =
# By default, each error from the tenth on takes a second; it hangs up at the twentieth.
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = {max_connections}
smtpd_client_event_limit_exceptions =
"""

MASTER_CF = """
127.0.0.1:{tls} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
127.0.0.1:{starttls} inet n - n - - smtpd -o smtpd_tls_security_level=encrypt
127.0.0.1:{bare} inet n - n - - smtpd -o smtpd_tls_security_level=encrypt
    -o smtpd_discard_ehlo_keywords=pipelining,size,8bitmime,smtputf8,chunking,dsn
    -o smtpd_recipient_limit={recipient_limit}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
virtual unix - n n - - virtual
error unix - - n - - error
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

SASL_CONF = """
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {root}/config/sasl/sasldb2
mech_list: PLAIN LOGIN
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A file of the maildir."""

    #: Its id in the queue, one for each message.
    queue_id: str
    recipient: str
    mime: Mime


class Postfix(Server):
    """Run Postfix, which delivers all mail into one maildir."""

    #: "bare" is STARTTLS with as few extensions as Postfix can have.
    services = ("tls", "starttls", "bare")
    ready = "daemon started"
    connected = "smtpd: connect from "
    accepted = r"qmgr: \w+: from="

    def set_up(self) -> None:
        require("postfix", "saslpasswd2")
        mailbox_user = pwd.getpwnam("nobody").pw_uid
        for name in ("config", "config/sasl", "queue", "data", "mail"):
            (self.root / name).mkdir(mode=0o755)
        shutil.chown(self.root / "data", "postfix")
        shutil.chown(self.root / "mail", mailbox_user)
        # Postfix writes to it as root and as its user.
        shutil.chown(self.write("maillog", ""), "postfix")
        self.write(
            "config/main.cf",
            MAIN_CF.format(
                root=self.root,
                domain=DOMAIN,
                host_name=HOST_NAME,
                size_limit=SIZE_LIMIT,
                uid=mailbox_user,
                # 0 is no limit.
                max_connections=self.max_connections or 0,
            ),
        )
        self.write_certificate("config/key.pem", "config/chain.pem")
        self.write("config/sasl/smtpd.conf", SASL_CONF.format(root=self.root))
        database = self.root / "config/sasl/sasldb2"
        _output(
            *("saslpasswd2", "-p", "-c", "-f", str(database), "-u", HOST_NAME, USER),
            say=TOKEN,
        )
        shutil.chown(database, "postfix")

    def command(self, ports: dict[str, int]) -> Sequence[str | Path]:
        text = MASTER_CF.format(recipient_limit=RECIPIENT_LIMIT, **ports)
        self.write("config/master.cf", text)
        # Creates the directories of the queue.
        _output("postfix", "-c", f"{self.root}/config", "check")
        return _output("postconf", "-h", "daemon_directory") + "/master", "-s"

    def environment(self) -> dict[str, str]:
        return {"MAIL_CONFIG": f"{self.root}/config"}

    def logs(self) -> Sequence[Path]:
        return (*super().logs(), self.root / "maillog")

    def log(self) -> str:
        """Return the log without times and process ids: `smtpd: connect from ...`."""
        return re.sub(r"(?m)^.* postfix/([\w/]+)\[\d+\]: ", r"\1: ", super().log())

    def recipients(self) -> list[str]:
        # By queue id: if it is stopped while delivering, Postfix delivers a mail twice.
        return [who for who, _ in {(m.recipient, m.queue_id) for m in self.delivered()}]

    def delivered(self) -> list[Delivered]:
        """Wait until nothing is in the queue, and return all that is in the maildir."""
        self.wait_for(self._queue_is_empty)
        return [_parse(file.read_bytes()) for file in self._mailbox()]

    def forget(self) -> None:
        self.wait_for(self._queue_is_empty)
        for file in self._mailbox():
            file.unlink()
        super().forget()

    def _mailbox(self) -> list[Path]:
        return list((self.root / "mail/all/new").glob("*"))

    def _queue_is_empty(self) -> bool:
        # In the order that a mail passes them, so that none is missed.
        queue = self.root / "queue"
        stages = (queue / name for name in ("incoming", "active", "deferred"))
        return not any(_is_mail(path) for stage in stages for path in stage.rglob("*"))


def _is_mail(path: Path) -> bool:
    """Return whether a path is a completely received mail."""
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        # Postfix makes a file executable when it is complete.
        return stat.S_ISREG(mode) and bool(mode & stat.S_IXUSR)
    return False


def _parse(raw: bytes) -> Delivered:
    # Postfix adds these lines at the top.
    queue_id = re.search(r"^\tby .* id (\w+)", raw.decode(), re.MULTILINE)
    recipient = re.search(r"^Delivered-To: (.*)$", raw.decode(), re.MULTILINE)
    assert queue_id, raw[:1000]
    assert recipient, raw[:1000]
    mime = email.message_from_bytes(raw, policy=email.policy.default)
    return Delivered(queue_id=queue_id[1], recipient=recipient[1], mime=mime)


def _output(*command: str, say: str | None = None) -> str:
    done = subprocess.run(
        command, input=say, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()
