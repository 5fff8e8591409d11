"""The relay of the benchmark takes mail, and counts the round trips of its sessions."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from django_lettermint.backend import EmailBackend
from tests.programs import ROOT, environment
from tests.sending import mail

if TYPE_CHECKING:
    from pathlib import Path

BOB = "bob@example.org"


def test_the_relay_of_the_benchmark_takes_mail_and_counts_round_trips(
    tmp_path: Path,
) -> None:
    ca_file = str(tmp_path / "ca.pem")
    command = [sys.executable, str(ROOT / "benchmarks" / "relay.py"), ca_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as relay:
        try:
            assert relay.stdout
            ports = json.loads(relay.stdout.readline())
            sender = EmailBackend(
                api_token="lm_bench",
                host="localhost",
                port=ports["starttls"],
                security="starttls",
                ca_file=ca_file,
            )
            sender.open()
            with (
                socket.create_connection(("127.0.0.1", ports["control"])) as sock,
                sock.makefile("rwb", buffering=0) as control,
            ):
                control.write(b"{}\n")
                assert control.readline()
                assert sender.send_messages([mail(BOB)]) == 1
                control.write(b"{}\n")
                assert json.loads(control.readline()) == {"turns": 2}
        finally:
            relay.kill()
