"""Exim, which refuses surplus connections in clear, also on its TLS port."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.zoo.server import HOST_NAME, TOKEN, USER, ZOO, Server, require

PROGRAM = ZOO / "usr/sbin/exim4"
#: Exim requires this user.
OWNER = "Debian-exim"

CONFIG = """
exim_user = Debian-exim
exim_group = Debian-exim
exim_path = {program}
spool_directory = {root}/spool
log_file_path = {root}/log/%slog
pid_file_path = {root}/spool/pid
log_selector = +received_recipients +smtp_connection
primary_hostname = {host_name}
keep_environment =

# Accepted mail stays in the spool.
queue_only
# No DNS.
host_lookup =

local_interfaces = 127.0.0.1
daemon_smtp_ports = {starttls} : {tls}
tls_on_connect_ports = {tls}
tls_certificate = {root}/chain.pem
tls_privatekey = {root}/key.pem
tls_advertise_hosts = *
chunking_advertise_hosts = *
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
smtp_accept_max = 100
{limits}

acl_smtp_mail = mail
acl_smtp_rcpt = rcpt

begin acl
mail:
    deny !authenticated = *
        message = Log in first
    deny senders = banned@*
        message = Sender is banned
    accept
rcpt:
    deny local_parts = ^nobody
        message = No such user
    defer local_parts = ^later
        message = Try again later
    accept

begin routers
all:
    driver = accept
    transport = none

begin transports
none:
    driver = appendfile
    file = /dev/null

begin authenticators
PLAIN:
    driver = plaintext
    public_name = PLAIN
    server_prompts = :
    server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{token}}}}}}}}}
    server_set_id = $auth2
LOGIN:
    driver = plaintext
    public_name = LOGIN
    server_prompts = Username:: : Password::
    server_condition = ${{if and{{{{eq{{$auth1}}{{{user}}}}}{{eq{{$auth2}}{{{token}}}}}}}}}
    server_set_id = $auth1
"""


class Exim(Server):
    """Run Exim, which logs the recipients of each mail before it replies."""

    ready = "daemon started: pid="
    connected = r"SMTP connection from .* \(TCP/IP connection count"
    accepted = " <= "

    def set_up(self) -> None:
        require(PROGRAM)
        self.write_certificate("key.pem", "chain.pem")
        shutil.chown(self.root / "key.pem", OWNER)
        for folder in ("spool", "log"):
            (self.root / folder).mkdir()
            shutil.chown(self.root / folder, OWNER, OWNER)

    def command(self, ports: dict[str, int]) -> Sequence[str | Path]:
        limits = {
            "smtp_accept_max_per_host": self.max_connections,
            "smtp_accept_max_per_connection": self.max_mails,
        }
        config = self.write(
            "exim.conf",
            CONFIG.format(
                root=self.root,
                program=PROGRAM,
                host_name=HOST_NAME,
                user=USER,
                token=TOKEN,
                # The default is 1,000 mails on a connection.
                limits="\n".join(
                    f"{name} = {limit}" for name, limit in limits.items() if limit
                ),
                **ports,
            ),
        )
        return PROGRAM, "-C", config, "-bdf"

    def logs(self) -> Sequence[Path]:
        return (*super().logs(), self.root / "log/mainlog", self.root / "log/paniclog")

    def recipients(self) -> list[str]:
        lines = re.findall(r"(?m) <= .* for (.*)$", self.log())
        return [who for line in lines for who in line.split()]
