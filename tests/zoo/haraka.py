"""Haraka, which refuses commands that are pipelined after the end of DATA."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.zoo.server import HOST_NAME, TOKEN, USER, ZOO, Server, require

PACKAGE = ZOO / "node_modules/Haraka"

SMTP = """
listen=127.0.0.1:{tls},127.0.0.1:{starttls}
smtps_port={tls}
; One process.
nodes=0
"""

#: `queue` is called for inbound mail, `queue_outbound` after a login.
PLUGIN = """
const fs = require('node:fs');

function note(line) {
    fs.appendFileSync(`${process.env.HARAKA}/notes`, `${line}\\n`);
}

exports.hook_init_master = function (next) {
    note('listening');
    next();
};

let open = 0;

exports.hook_connect = function (next, connection) {
    open += 1;
    if (open > MAX_CONNECTIONS)
        return next(DENYSOFTDISCONNECT, 'Too many connections from this client');
    next();
};

exports.hook_disconnect = function (next) {
    open -= 1;
    next();
};

exports.hook_mail = function (next, connection, [sender]) {
    if (sender.user === 'banned') return next(DENY, 'Sender is banned');
    if (connection.tran_count > MAX_MAILS)
        return next(DENYSOFT, 'Too many messages in this session');
    next();
};

exports.hook_rcpt = function (next, connection, [recipient]) {
    if (recipient.user.startsWith('nobody')) return next(DENY, 'No such user');
    if (recipient.user.startsWith('later')) return next(DENYSOFT, 'Try again later');
    next(OK);
};

exports.hook_queue = exports.hook_queue_outbound = function (next, connection) {
    const { uuid, rcpt_to } = connection.transaction;
    for (const recipient of rcpt_to)
        note(`taken: ${uuid} for ${recipient.user}@${recipient.host}`);
    next(OK, `queued as ${uuid}`);
};
"""


class Haraka(Server):
    """Run Haraka; its plugin logs the recipients of a mail before the reply."""

    ready = "^listening$"
    connected = r"\[core\] connect ip="
    accepted = "^taken: "

    def set_up(self) -> None:
        require("node", "openssl", PACKAGE / "bin/haraka")
        limits = {
            "MAX_CONNECTIONS": self.max_connections,
            "MAX_MAILS": self.max_mails,
        }
        constants = "".join(
            f"const {name} = {limit or 'Infinity'};\n" for name, limit in limits.items()
        )
        self.write("plugins/zoo.js", constants + PLUGIN)
        self.write("config/plugins", "tls\nauth/flat_file\nzoo\n")
        self.write("config/log.ini", "[main]\nlevel=notice\n")
        self.write("config/me", HOST_NAME)
        self.write(
            "config/tls.ini", "key=key.pem\ncert=chain.pem\ndhparam=dhparams.pem\n"
        )
        self.write_certificate("config/key.pem", "config/chain.pem")
        # From RFC 7919; without the file, Haraka generates one, which takes half a minute.
        subprocess.run(
            [
                *("openssl", "genpkey", "-genparam", "-algorithm", "DH"),
                *("-pkeyopt", "group:ffdhe2048", "-out", "config/dhparams.pem"),
            ],
            cwd=self.root,
            check=True,
        )
        self.write(
            "config/auth_flat_file.ini",
            "[core]\nmethods=PLAIN,LOGIN\nconstrain_sender=false\n"
            f"[users]\n{USER}={TOKEN}\n",
        )
        # The only file without a default: it has the greeting.
        shutil.copy(PACKAGE / "config/connection.ini", self.root / "config")

    def logs(self) -> Sequence[Path]:
        return (*super().logs(), self.root / "notes")

    def command(self, ports: dict[str, int]) -> Sequence[str | Path]:
        self.write("config/smtp.ini", SMTP.format(**ports))
        return "node", PACKAGE / "bin/haraka", "-c", self.root

    def recipients(self) -> list[str]:
        return re.findall(r"(?m)^taken: \S+ for (.*)$", self.log())
