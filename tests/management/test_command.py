"""manage.py test_lettermint, against real servers."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import django
import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.signals import pre_send
from django.core.management import CommandError, call_command
from django.test import override_settings

import django_lettermint
from django_lettermint.checks import BACKEND
from django_lettermint.conf import SECURITY_BY_PORT, backend_config
from django_lettermint.exceptions import RecipientsRefused
from django_lettermint.management import ports
from django_lettermint.management.commands.test_lettermint import (
    Command,
    asks_for_records,
)
from django_lettermint.management.next_steps import Failed, advise
from django_lettermint.signals import message_failed, message_sent
from django_lettermint.testing import Relay
from tests.deadends import blackhole, refused_port
from tests.faults import Action, On, drop, hang, normal, raw, reply
from tests.faultserver import TOKEN, FaultServer
from tests.management.dnsserver import dns_server

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

    from django_lettermint.results import SendResult

ROOT = Path(__file__).parent.parent.parent
DOCS = (ROOT / "docs" / "test_lettermint.md").read_text("utf-8")

#: From Django 6.1 on, MAILERS names the backend; before, EMAIL_BACKEND does.
HAS_MAILERS = django.VERSION >= (6, 1)
PLACE = "MAILERS['default']['BACKEND']" if HAS_MAILERS else "EMAIL_BACKEND"

TLS_STEPS = ["DNS", "TCP", "TLS", "EHLO", "AUTH"]
STARTTLS_STEPS = ["DNS", "TCP", "EHLO", "TLS", "EHLO", "AUTH"]
MAIL_STEPS = ["MAIL", "RCPT", "DATA", "reply"]


class Ran(NamedTuple):
    out: str
    err: str
    code: int

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def steps(self) -> list[str]:
        return [step["name"] for step in self.document["steps"]]

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.document["error"]
        return error


def run(*arguments: str, **options: Any) -> Ran:
    """Run the command as manage.py would, and return what it wrote and its exit code."""
    out = io.StringIO()
    try:
        call_command("test_lettermint", *arguments, stdout=out, **options)
    except CommandError as error:
        return Ran(out.getvalue(), str(error), error.returncode)
    return Ran(out.getvalue(), "", 0)


def mailers(options: dict[str, object], backend: str = BACKEND) -> dict[str, Any]:
    """Return the settings that make the project send in this way."""
    if HAS_MAILERS:
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": options}}}
    named = {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}
    return {"EMAIL_BACKEND": backend, **named}


@contextmanager
def project(options: dict[str, object], backend: str = BACKEND) -> Iterator[None]:
    with override_settings(**mailers(options, backend)):
        yield


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as relay, project(relay.options()):
        yield relay


@contextmanager
def fault(
    *script: On, changed: dict[str, object] | None = None, **traits: Any
) -> Iterator[FaultServer]:
    """Run a server with these traits and a project that uses it."""
    options = {"retries": 0, **(changed or {})}
    with (
        FaultServer(script, **traits) as server,
        project(server.options(**options)),
    ):
        yield server


# A mail.


def test_a_mail_goes_to_lettermints_test_address_unless_told_otherwise(
    relay: Relay,
) -> None:
    ran = run()

    (message,) = relay.wait_for(1)
    assert message.recipients == ("ok@testing.lettermint.co",)
    assert (ran.err, ran.code) == ("", 0)


def test_each_step_is_shown_with_its_time_and_what_was_found(relay: Relay) -> None:
    out = run().out

    rows = re.findall(r"^  ✓ (\w+) +(\d+\.\d) ms  (.+)$", out, re.MULTILINE)
    assert [name for name, _, _ in rows] == TLS_STEPS + MAIL_STEPS
    details = {name: detail for name, _, detail in rows}
    assert details["DNS"] == "127.0.0.1"
    assert details["TCP"] == f"127.0.0.1:{relay.port('tls')}"
    assert re.match(r"TLSv1\.3, certificate valid until \w{3} ", details["TLS"])
    assert "8BITMIME" in details["EHLO"]
    assert details["AUTH"] == "PLAIN"
    assert "FROM:<webmaster@localhost>" in details["MAIL"]
    assert details["RCPT"].startswith("TO:<ok@testing.lettermint.co> → 250 ")
    assert details["DATA"].startswith("354 ")
    assert details["reply"].startswith("250 2.0.0 ")


def test_the_rows_are_aligned(relay: Relay) -> None:
    rows = [line for line in run().out.splitlines() if " ms  " in line]

    assert len(rows) == len(TLS_STEPS + MAIL_STEPS)
    assert len({line.index(" ms  ") for line in rows}) == 1


@pytest.mark.parametrize("phase", ["banner", "starttls"])
def test_the_row_of_a_failure_is_aligned_with_the_others(phase: Any) -> None:
    with fault(On(phase, reply(554)), tls="starttls"):
        rows = [line for line in run().out.splitlines() if " ms  " in line]

    assert rows[-1].startswith("  ✗ ")
    assert len({line.index(" ms  ") for line in rows}) == 1


def test_the_end_says_who_got_it_and_under_which_id(relay: Relay) -> None:
    out = run("ada@example.com").out

    (message,) = relay.wait_for(1)
    assert "✓ The relay accepted 1 mail for ada@example.com." in out
    assert f"message id: {message.metadata['django_message_id']}" in out


def test_starttls_is_shown_in_its_own_order() -> None:
    with Relay() as relay, project(relay.options("starttls")):
        assert run("--json").steps == STARTTLS_STEPS + MAIL_STEPS


def test_a_relay_without_tls_on_this_machine_is_shown_without_tls() -> None:
    with fault(tls=None):
        assert run("--json").steps == ["DNS", "TCP", "EHLO", "AUTH", *MAIL_STEPS]


def test_the_options_end_up_in_the_mail(relay: Relay) -> None:
    ran = run(
        "ada@example.com",
        "--from=Shop <shop@example.com>",
        "--route=broadcast",
        "--tag=smoke test",
        "--metadata=order_id=4711",
        "--metadata=formula=a=b",
    )

    (message,) = relay.wait_for(1)
    assert ran.code == 0
    assert message.mail_from == "shop@example.com"
    assert message.recipients == ("ada@example.com",)
    assert (message.route, message.tag) == ("broadcast", "smoke test")
    assert {"order_id": "4711", "formula": "a=b"}.items() <= message.metadata.items()
    assert message.idempotency_key


def test_without_options_the_mail_has_the_projects_defaults() -> None:
    defaults = {"tag": "default", "route": "transactional"}
    with Relay() as relay, project(relay.options(send_defaults=defaults)):
        run()

        (message,) = relay.wait_for(1)
        assert (message.route, message.tag) == ("transactional", "default")


def test_pipelining_and_chunking_are_off_for_the_steps_only() -> None:
    features = ("PIPELINING", "CHUNKING", "8BITMIME")
    with fault(features=features, changed={"chunking": True}) as server:
        run("--count=2")

        sent = [line for _, line in server.commands if line.startswith(b"BDAT")]
        assert len(sent) == 1
        assert server.delivered == {"ok@testing.lettermint.co": 2}
        assert server.violations == []


@pytest.mark.parametrize("count", [1, 3])
def test_every_mail_fires_one_signal(relay: Relay, count: int) -> None:
    results: list[SendResult] = []

    def receive(result: SendResult, **_: object) -> None:
        results.append(result)

    message_sent.connect(receive)
    try:
        ran = run(f"--count={count}", "--json")
    finally:
        message_sent.disconnect(receive)

    ids = [message["message_id"] for message in ran.document["messages"]]
    assert [result.message_id for result in results] == ids
    assert len(ids) == len(relay.wait_for(count)) == count


def test_the_signal_of_a_failure_has_its_error() -> None:
    errors: list[Exception] = []

    def receive(error: Exception, **_: object) -> None:
        errors.append(error)

    message_failed.connect(receive)
    try:
        with fault(On("rcpt", reply(550))):
            ran = run()
    finally:
        message_failed.disconnect(receive)

    [error] = errors
    assert str(error).startswith(ran.err.partition("\n")[0])


# Several.


def test_all_mails_but_the_first_go_through_the_pool(relay: Relay) -> None:
    out = run("--count=4").out

    assert len(relay.wait_for(4)) == 4
    assert re.search(r"  3 more through the pool: \d+\.\d to \d+\.\d ms each", out)
    place = f"pool 127.0.0.1:{relay.port('tls')}"
    assert f"{place}: 3 mails over 1 connection, reused 2 times, 0 retried" in out
    assert "✓ The relay accepted 4 mails for " in out
    assert relay.statistics.connections == 2


def test_one_mail_needs_no_pool(relay: Relay) -> None:
    assert "pool" not in run().out


def test_a_failure_on_the_way_through_the_pool_ends_it() -> None:
    with fault(On("rcpt", reply(550, "5.1.1 no"), message=3)) as server:
        ran = run("--count=5", "--json")

        assert ran.code == 1
        assert server.delivered == {"ok@testing.lettermint.co": 2}
        outcomes = [message["outcome"] for message in ran.document["messages"]]
        assert outcomes == ["sent", "sent", "not_sent"]
        assert ran.error["step"] == "rcpt"
        assert ran.document["pools"][0]["opened"] == 1


def test_fail_silently_hides_no_failure_from_this_command() -> None:
    with fault(On("rcpt", reply(550)), changed={"fail_silently": True}):
        assert run().code == 1
    rule = On("rcpt", reply(550), message=2)
    with fault(rule, changed={"fail_silently": True}):
        assert run("--count=2").code == 1


# Without a mail.


def test_check_logs_in_and_sends_nothing(relay: Relay) -> None:
    ran = run("--check")

    assert ran.code == 0
    assert "✓ NOOP" in ran.out
    assert "✓ The relay accepted the token; no mail was sent." in ran.out
    assert relay.messages == []
    assert relay.logins.successes == 1


@pytest.mark.parametrize("action", [reply(500), drop()])
def test_check_wants_an_answer_to_noop(action: Action) -> None:
    with fault(On("noop", action)):
        ran = run("--check", "--json")

    assert ran.code == 1
    assert ran.steps == [*TLS_STEPS, "NOOP"]
    assert ran.document["steps"][-1]["detail"] == "no 250"
    assert ran.error["step"] == "NOOP"


def test_the_time_of_noop_is_its_own_and_not_that_of_the_goodbye() -> None:
    with fault(On("quit", hang())):
        ran = run("--check", "--json")

    assert ran.document["steps"][-1]["seconds"] < 0.9  # QUIT is given a second


def test_check_says_what_failed() -> None:
    with fault(changed={"api_token": "wrong"}):
        ran = run("--check")

    assert ran.code == 1
    assert re.search(r"✗ AUTH +\d+\.\d ms  535 5\.7\.8 ", ran.out)
    assert "Next step: " in ran.err


def test_scan_ports_tries_all_documented_ports_and_the_one_in_use(relay: Relay) -> None:
    ran = run("--scan-ports")

    rows = re.findall(r"^  [✓✗] +(\d+) (\w+) ", ran.out, re.MULTILINE)
    assert [int(port) for port, _ in rows] == [*ports.PREFERENCE, relay.port("tls")]
    assert f"✓ The configured port, {relay.port('tls')}, works." in ran.out
    assert ran.code == 0


def test_scan_ports_logs_in_nowhere(relay: Relay) -> None:
    run("--scan-ports")

    assert relay.logins.attempts == 0


def test_every_documented_port_has_its_place_in_the_preference() -> None:
    assert sorted(ports.PREFERENCE) == sorted(SECURITY_BY_PORT)


def test_scan_ports_of_a_port_in_use_that_is_closed_fails() -> None:
    with refused_port() as port:
        options = {"api_token": TOKEN, "host": "127.0.0.1", "port": port}
        with project({**options, "security": "tls"}):
            ran = run("--scan-ports", "--json")

    assert ran.code == 1
    assert ran.error["step"] == "ports"
    assert {entry["port"] for entry in ran.document["ports"]} == {
        *ports.PREFERENCE,
        port,
    }


def test_a_scan_names_the_best_port_to_take_instead() -> None:
    with Relay() as relay, refused_port() as closed:
        config = backend_config(relay.options(port=closed)).relay
        good = {relay.port("starttls"): "starttls", relay.port("tls"): "tls"}

        found = ports.scan(config, {closed: "tls", **good})
        with pytest.raises(Failed) as failed:
            ports.require(closed, found)

    assert [port.ok for port in found] == [False, True, True]
    assert "Connection refused" in str(failed.value)
    assert f"Set `port` to {relay.port('starttls')}" in failed.value.next_step
    assert '`security` to "starttls"' in failed.value.next_step


def test_a_scan_without_any_good_port_blames_the_network_or_the_name() -> None:
    with Relay() as relay, refused_port() as closed:
        config = backend_config(relay.options(port=closed)).relay

        with pytest.raises(Failed) as failed:
            ports.require(closed, ports.scan(config, {closed: "tls"}))

    assert "allow port 465 or 587" in failed.value.next_step


def test_a_scan_is_bounded_by_the_timeout() -> None:
    with Relay() as relay, blackhole() as silent:
        config = backend_config(relay.options(timeout=0.2)).relay

        (port,) = ports.scan(config, {silent: "tls"})

    assert port.detail.endswith("timed out")
    assert 0.1 < port.seconds < ports.PATIENCE - 1


def test_a_scan_shows_a_port_without_tls_as_such() -> None:
    with FaultServer(tls=None) as server:
        config = backend_config(server.options()).relay

        (port,) = ports.scan(config, {server.port: "plaintext"})

    assert (port.ok, port.detail) == (True, "without TLS")


# The DNS records of the sender's domain: test_dns_records.py has what is looked for.

RECORDS = {
    "lm-bounces.shop.test": {"CNAME": ["bounces.lmta.net."]},
    "lm1._domainkey.shop.test": {"CNAME": ["lm1.k3y.dkim.lmta.net."]},
    "lm2._domainkey.shop.test": {"CNAME": ["lm2.k3y.dkim.lmta.net."]},
    "_dmarc.shop.test": {"TXT": ['"v=DMARC1; p=none"']},
}


def test_dns_shows_the_records_and_uses_no_relay(relay: Relay) -> None:
    with dns_server(RECORDS):
        ran = run("--dns", "--from=Shop <a@Shop.TEST>")

    rows = re.findall(r"^  ✓ (.+?) +\d+\.\d ms  (\S+) ", ran.out, re.MULTILINE)
    purposes = ["return path", "DKIM", "DKIM", "DMARC"]
    assert rows == list(zip(purposes, RECORDS, strict=True))
    assert "✓ The domain has the records that Lettermint asks for." in ran.out
    assert ran.code == 0
    assert relay.statistics.connections == 0


def test_dns_lists_what_is_to_be_entered(relay: Relay) -> None:
    with dns_server({name: RECORDS[name] for name in list(RECORDS)[2:]}):
        ran = run("--dns", "--from=a@shop.test")

    assert ran.code == 1
    assert ran.out.count("✗ ") == 2
    assert ran.out.endswith(
        "\n"
        "  Name                      Type   Value\n"
        "  lm-bounces.shop.test      CNAME  bounces.lmta.net\n"
        "  lm1._domainkey.shop.test  CNAME  lm1.k3y.dkim.lmta.net\n"
    )
    assert "Next step: Enter the records of the table" in ran.err


def test_dns_is_in_the_document_in_plain_data(relay: Relay) -> None:
    with dns_server(RECORDS):
        document = run("--dns", "--json", "--from=a@shop.test").document

    assert document["dns"]["name"] == "shop.test"
    assert document["dns"]["exists"] is True
    assert [each["status"] for each in document["dns"]["records"]] == ["ok"] * 4
    assert (
        document["dns"]["records"][0].items()
        >= {
            "purpose": "return path",
            "name": "lm-bounces.shop.test",
            "type": "CNAME",
            "value": "bounces.lmta.net",
        }.items()
    )


def test_dns_looks_for_the_domain_of_default_from_email_in_ascii(relay: Relay) -> None:
    with dns_server({}), override_settings(DEFAULT_FROM_EMAIL="a@Größe.test"):
        document = run("--dns", "--json").document

    assert document["dns"]["name"] == "xn--gre-6ka8i.test"
    assert "does not exist" in document["error"]["message"]


@pytest.mark.parametrize(
    ("sender", "said"), [("webmaster@localhost", "'localhost'"), ("nobody", "nobody")]
)
def test_dns_wants_a_sender_that_has_a_domain(
    relay: Relay, sender: str, said: str
) -> None:
    ran = run("--dns", "--json", f"--from={sender}")

    assert (ran.code, ran.error["step"]) == (1, "options")
    assert said in ran.error["message"]


def test_check_looks_for_the_records_that_lettermint_asks_for() -> None:
    assert asks_for_records("smtp.lettermint.co")
    assert not asks_for_records("lettermint.co.example.com")


def test_without_dnspython_check_does_without_and_dns_names_the_extra(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dns", None)
    monkeypatch.delitem(
        sys.modules, "django_lettermint.management.dns_records", raising=False
    )
    monkeypatch.delattr("django_lettermint.management.dns_records", raising=False)

    assert not asks_for_records("smtp.lettermint.co")
    assert "django-lettermint-smtp[dns]" in run("--dns", "--json").error["next_step"]


# Failures, each with its next step.

FAILURES: list[tuple[str, dict[str, Any], list[On], str, str]] = [
    # what, traits and changed options, script, the step that fails, in the next step
    ("wrong token", {"changed": {"api_token": "wrong"}}, [], "AUTH", "SMTP is enabled"),
    ("no login", {"auth": ()}, [], "AUTH", "`auth_mechanism`"),
    ("login later", {}, [On("auth", reply(454, "4.7.0 later"))], "AUTH", "Wait"),
    ("expired", {"cert": "expired"}, [], "TLS", "clock"),
    ("not yet valid", {"cert": "not_yet"}, [], "TLS", "clock"),
    ("another name", {"cert": "wrong_host"}, [], "TLS", "name that is in"),
    ("untrusted", {"cert": "untrusted"}, [], "TLS", "`ca_file`"),
    ("self-signed", {"cert": "self_signed"}, [], "TLS", "`ca_file`"),
    ("old TLS", {"cert": "tls1.1"}, [], "TLS", "TLS 1.2 or later"),
    ("starttls refused", {"tls": "starttls"}, [On("starttls", reply(554))], "STARTTLS", "the default, 465"),
    ("starttls put off", {"tls": "starttls"}, [On("starttls", reply(454))], "STARTTLS", "Wait some minutes"),
    ("no starttls", {"tls": None, "changed": {"security": "starttls"}}, [], "STARTTLS", "the default, 465"),
    ("starttls unanswered", {"tls": "starttls"}, [On("starttls", drop())], "STARTTLS", "an SMTP relay"),
    ("no tls", {"tls": None, "changed": {"security": "tls"}}, [], "TLS", "TLS 1.2 or later in this way"),
    ("hang-up in tls", {}, [On("tls", drop())], "TLS", "TLS 1.2 or later in this way"),
    ("silence", {"changed": {"timeout": 0.3}}, [On("banner", hang())], "greeting", "`timeout`"),
    ("no service", {}, [On("banner", reply(554, "not you"))], "greeting", "Lettermint's support"),
    ("no smtp", {}, [On("banner", raw(b"hello\r\n"))], "greeting", "an SMTP relay"),
    ("no ehlo", {}, [On("ehlo", reply(502, "what"))], "EHLO", "Lettermint's support"),
    ("sender", {}, [On("mail", reply(550, "5.7.1 unverified"))], "MAIL", "Verify"),
    ("recipient", {}, [On("rcpt", reply(550, "5.1.1 unknown"))], "RCPT", "suppression list"),
    ("data", {}, [On("data", reply(554, "5.3.0 no"))], "DATA", "--route"),
    ("content", {}, [On("dot", reply(554, "5.6.0 tag"))], "reply", "--route"),
    ("sender later", {}, [On("mail", reply(450, "4.7.1 later"))], "MAIL", "Wait some minutes"),
    ("recipient later", {}, [On("rcpt", reply(450, "4.2.1 later"))], "RCPT", "Wait some minutes"),
    ("content later", {}, [On("dot", reply(451, "4.3.0 later"))], "reply", "Wait some minutes"),
    ("closing", {}, [On("mail", reply(421, "bye", close=True))], "MAIL", "Wait some minutes"),
    ("loss", {}, [On("data", drop())], "DATA", "run it again"),
    ("stall", {"changed": {"timeout": 0.3}}, [On("data", hang())], "DATA", "raise `timeout`"),
    ("maybe", {}, [On("dot", drop())], "reply", "before you send it again"),
    ("size", {"features": ("SIZE 100",)}, [], "message", "options"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("traits", "script", "step", "remedy"),
    [pytest.param(*case[1:], id=case[0]) for case in FAILURES],
)
def test_a_failure_shows_its_step_and_says_what_to_do(
    traits: dict[str, Any], script: list[On], step: str, remedy: str
) -> None:
    with fault(*script, **traits):
        ran = run("--json")
    with fault(*script, **traits):
        human = run()

    assert ran.code == human.code == 1
    assert ran.error["step"] == ran.steps[-1] == step
    steps = ran.document["steps"]
    assert [entry["ok"] for entry in steps] == [True] * (len(steps) - 1) + [False]
    assert remedy in ran.error["next_step"]
    assert remedy in human.err
    assert re.search(rf"^  ✗ {step} ", human.out, re.MULTILINE)


def test_a_name_that_does_not_resolve_is_a_matter_of_dns() -> None:
    options: dict[str, object] = {"api_token": TOKEN, "host": "relay.invalid"}
    with project({**options, "timeout": 2, "retries": 0}):
        ran = run("--json")

    assert (ran.code, ran.steps) == (1, ["DNS"])
    assert "getent hosts" in ran.error["next_step"]
    assert "DNS on relay.invalid:465 failed: " in ran.document["steps"][0]["detail"]


def test_a_port_that_nobody_listens_on_is_a_matter_of_tcp() -> None:
    with refused_port() as port, Relay() as relay, project(relay.options(port=port)):
        ran = run("--json")

    assert ran.steps == ["DNS", "TCP"]
    assert "start the relay first" in ran.error["next_step"]
    assert "--scan-ports" in ran.error["next_step"]
    reason = f"TCP on 127.0.0.1:{port} failed: Connection refused"
    assert ran.document["steps"][1]["detail"] == reason


def test_a_port_that_is_blocked_is_a_matter_of_tcp() -> None:
    with (
        blackhole() as port,
        Relay() as relay,
        project(relay.options(port=port, timeout=0.2)),
    ):
        ran = run("--json")

    assert ran.steps == ["DNS", "TCP"]
    assert "timed out" in ran.error["message"]
    assert "block outgoing mail ports" in ran.error["next_step"]


def test_the_replys_code_is_in_the_document() -> None:
    with fault(On("rcpt", reply(550, "5.1.1 unknown"))):
        ran = run("--json")

    assert ran.error["type"] == "RecipientsRefused"
    assert ran.error["code"] == 550
    assert "5.1.1 unknown" in ran.document["steps"][-1]["detail"]
    (message,) = ran.document["messages"]
    assert (message["outcome"], message["phase"]) == ("not_sent", "rcpt")


@pytest.mark.parametrize(
    ("script", "traits", "detail"),
    [
        ([], {"cert": "expired"}, r"TLS with \S+ failed: certificate .* has expired"),
        ([On("ehlo", drop())], {}, r"EHLO on \S+ failed: the server closed .*"),
        ([On("auth", drop())], {}, r"AUTH on \S+ failed: the server closed .*"),
        ([On("banner", reply(554, "5.7.1 no"))], {}, r"554 5\.7\.1 no"),
        ([], {"auth": ()}, r"\S+ offers AUTH \(nothing\), not PLAIN or .*MD5"),
    ],
)
def test_the_row_of_a_failed_connection_says_why(
    script: list[On], traits: dict[str, Any], detail: str
) -> None:
    with fault(*script, **traits):
        ran = run("--json")

    assert re.fullmatch(detail, ran.document["steps"][-1]["detail"])


def test_a_port_that_is_tried_shows_the_reason_of_the_step_that_failed() -> None:
    with fault(On("banner", reply(554, "5.7.1 no"))) as server:
        config = backend_config(server.options()).relay
        (port,) = ports.scan(config, {server.port: "tls"})
        step = run("--json").document["steps"][-1]

    assert port.detail == step["detail"] == "554 5.7.1 no"


@pytest.mark.parametrize("script", [On("rcpt", reply(550)), On("dot", drop())])
def test_no_attribute_of_an_error_is_mentioned_on_the_command_line(script: On) -> None:
    with fault(script):
        assert not re.search(r"\berror\.\w", run().err)


def test_an_unconfirmed_mail_is_said_to_be_unknown() -> None:
    with fault(On("dot", drop())):
        (message,) = run("--json").document["messages"]

    assert message["outcome"] == "unknown"


def test_the_first_mail_is_never_tried_twice() -> None:
    with fault(On("dot", drop())) as server:
        run()

        assert server.connections == 1


def test_a_connection_broken_off_by_hand_is_closed_and_reported() -> None:
    reports: list[SendResult] = []

    def receive(result: SendResult, **_: object) -> None:
        reports.append(result)

    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            if "DATA" in text:
                raise KeyboardInterrupt
            return super().write(text)

    message_failed.connect(receive)
    try:
        with fault() as server, pytest.raises(KeyboardInterrupt):
            call_command("test_lettermint", stdout=Interrupted())
        assert server.wait_for(lambda: not server.open_connections)
    finally:
        message_failed.disconnect(receive)

    assert [result.outcome.value for result in reports] == ["not_sent"]


def test_an_error_of_an_unforeseen_type_is_at_least_traceable() -> None:
    assert "--traceback" in advise(RuntimeError())


# What is wrong before any network.


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--tag=a\tb", "tag"),
        ("--route=no/slug", "route"),
        ("--metadata=key=", "key"),
        ("--from=nobody", "from_email"),
        ("nobody", "to"),
    ],
)
def test_an_option_that_breaks_a_rule_reaches_no_relay(
    relay: Relay, argument: str, said: str
) -> None:
    ran = run(argument)

    assert ran.code == 1
    assert said in ran.err
    assert "this command's options" in ran.err
    assert relay.statistics.connections == 0


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--metadata=key", "Write it as KEY=VALUE."),
        ("--count=0", "Use 1 or more."),
    ],
)
def test_an_option_that_makes_no_sense_is_explained(argument: str, said: str) -> None:
    ran = run(argument, "--json")

    assert ran.code == 1
    assert ran.error["step"] == "options"
    assert ran.error["next_step"] == said
    assert ran.document["relay"] is None


def test_a_mail_without_recipient_is_a_failure(relay: Relay) -> None:
    ran = run("")

    assert ran.code == 1
    assert "no recipient" in ran.err


def test_an_unsupported_send_default_is_a_failure() -> None:
    with Relay() as relay, project(relay.options(send_defaults={"track_opens": True})):
        ran = run("--json")

    assert ran.code == 1
    assert ran.error["step"] == "message"
    assert "send_defaults" in ran.error["next_step"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_cancelled_mail_is_a_failure(relay: Relay, number: int) -> None:
    def cancel(message: EmailMessage, **_: object) -> None:
        if f"test {number} of" in message.subject:
            raise AnymailCancelSend("not today")

    pre_send.connect(cancel)
    try:
        ran = run("--count=2")
    finally:
        pre_send.disconnect(cancel)

    assert ran.code == 1
    assert "pre_send" in ran.err
    assert len(relay.messages) == number - 1


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_of_a_pre_send_receiver_is_a_failure_like_any_other(
    relay: Relay, number: int
) -> None:
    def break_off(message: EmailMessage, **_: object) -> None:
        if f"test {number} of" in message.subject:
            raise RuntimeError("no template")

    pre_send.connect(break_off)
    try:
        ran = run("--count=2", "--json")
    finally:
        pre_send.disconnect(break_off)

    assert ran.code == 1
    assert ran.error["type"] == "RuntimeError"
    assert ran.error["message"] == "RuntimeError: no template"
    assert ran.error["step"] == "message"
    assert "pre_send" in ran.error["next_step"]
    assert "--traceback" in ran.error["next_step"]
    assert len(relay.messages) == number - 1


def test_a_traceback_shows_the_cause() -> None:
    with fault(On("rcpt", reply(550))), pytest.raises(CommandError) as raised:
        call_command("test_lettermint", stdout=io.StringIO())

    assert isinstance(raised.value.__cause__, RecipientsRefused)


# Settings.


def test_a_missing_token_is_named() -> None:
    with project({}):
        ran = run("--json")

    assert ran.code == 1
    assert ran.error["step"] == "settings"
    assert "LETTERMINT_API_TOKEN" in ran.error["message"]
    assert "manage.py check" in ran.error["next_step"]


def test_a_backend_that_does_not_exist_is_named() -> None:
    with project({}, "no_such_module.EmailBackend"):
        ran = run()

    assert ran.code == 1
    assert "no_such_module" in ran.err


def test_another_backend_is_named_with_the_remedy_and_nothing_is_sent() -> None:
    with project({}, "django.core.mail.backends.dummy.EmailBackend"):
        ran = run()

    assert ran.code == 1
    assert "django.core.mail.backends.dummy.EmailBackend" in ran.err
    assert f"Next step: Set {PLACE} to '{BACKEND}'." in ran.err


def test_using_names_a_mailer_where_there_are_mailers(relay: Relay) -> None:
    entry = {"BACKEND": BACKEND, "OPTIONS": relay.options()}
    dummy = {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"}
    with override_settings(MAILERS={"default": dummy, "relay": entry}):
        ran = run("--using=relay", "--json")
        default = run()

    if HAS_MAILERS:
        assert ran.code == 0
        assert ran.document["relay"]["alias"] == "relay"
        assert default.err.endswith("or test a mailer that does: --using relay.")
    else:
        assert "Django 6.1" in ran.error["message"]
        assert default.code == 0


@pytest.mark.skipif(not HAS_MAILERS, reason="Django 6.1 has MAILERS")
def test_using_an_unknown_mailer_lists_those_that_exist(relay: Relay) -> None:
    ran = run("--using=nobody", "--json")

    assert ran.code == 1
    assert ran.error["step"] == "options"
    assert (
        ran.error["message"] == "--using nobody is not in MAILERS, which has 'default'"
    )
    assert ran.error["next_step"] == "Use one of these, or omit --using."


def test_without_mailers_email_backend_is_tested_on_every_django() -> None:
    with (
        Relay() as relay,
        override_settings(EMAIL_BACKEND=BACKEND, ANYMAIL=relay.settings()),
    ):
        ran = run("--check")
        document = run("--check", "--json").document

    assert ran.out.startswith(f"EMAIL_BACKEND → 127.0.0.1:{relay.port('tls')}, tls")
    assert document["relay"]["alias"] is None


def test_without_mailers_there_is_no_alias_to_use() -> None:
    with override_settings(EMAIL_BACKEND=BACKEND, LETTERMINT_API_TOKEN=TOKEN):
        ran = run("--using=default", "--json")

    assert ran.code == 1
    assert "needs the setting MAILERS" in ran.error["message"]
    assert ran.error["next_step"].startswith("Omit --using")


# How it looks.


def test_the_document_has_exactly_the_documented_keys(relay: Relay) -> None:
    document = run("--json", "--count=2").document

    table = DOCS.partition("## JSON")[2]
    assert re.findall(r"^\| `(\w+)` ", table, re.MULTILINE) == list(document)
    assert document["ok"] is True
    assert document["version"] == django_lettermint.__version__
    assert document["error"] is None
    for step in document["steps"]:
        assert list(step) == ["name", "ok", "seconds", "detail"]


@pytest.mark.parametrize("arguments", [["--check"], ["--scan-ports"], []])
def test_json_is_all_there_is_on_the_output(relay: Relay, arguments: list[str]) -> None:
    assert run("--json", *arguments).document["ok"] is True


def test_every_option_is_documented_and_every_documented_one_exists() -> None:
    parser = Command().create_parser("manage.py", "test_lettermint")
    own = parser.format_help().partition("--version")[0]

    documented = DOCS.partition("## Options")[2].partition("\n## ")[0]
    pattern = r"--(?!help|verbosity)[a-z][a-z-]+"
    assert set(re.findall(pattern, own)) == set(re.findall(pattern, documented))


def test_verbosity_0_is_silent_but_for_failures(relay: Relay) -> None:
    assert run("--verbosity=0") == Ran("", "", 0)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_without_our_signs_gets_plain_ones(
    relay: Relay, encoding: str
) -> None:
    raw_output = io.BytesIO()
    out = io.TextIOWrapper(raw_output, encoding)
    call_command("test_lettermint", stdout=out)
    out.flush()

    text = raw_output.getvalue().decode("ascii")
    assert "+ AUTH" in text
    assert ": 250 " in text


def test_colours_only_add_to_the_signs(relay: Relay) -> None:
    assert "\x1b[" in run(force_color=True).out
    assert "\x1b[" not in run(no_color=True).out


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
@pytest.mark.parametrize("arguments", [["--count=2"], ["--json", "--count=2"]])
def test_the_token_is_shown_at_no_verbosity(
    verbosity: int, arguments: list[str]
) -> None:
    # Some write the token where the user name belongs, and the pool's statistics, the
    # addresses or a server's reply may bring it back.
    echo = reply(550, f"5.7.1 {TOKEN}")
    for script in (On("rcpt", normal), On("auth", echo), On("rcpt", echo)):
        with fault(script, changed={"username": TOKEN}, user=TOKEN):
            ran = run(*arguments, f"--from={TOKEN}@x.test", verbosity=verbosity)

        assert TOKEN not in ran.out + ran.err


def test_a_traceback_shows_no_token() -> None:
    echo = reply(550, f"5.7.1 {TOKEN}")
    with (
        fault(On("auth", echo), changed={"username": TOKEN}),
        pytest.raises(CommandError) as raised,
    ):
        call_command("test_lettermint", stdout=io.StringIO())

    assert TOKEN not in "".join(traceback.format_exception(raised.value))


# As a user runs it.

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "project_settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.mark.parametrize(("token", "code"), [("lm_test_token", 0), ("wrong", 1)])
def test_manage_py_runs_it_without_warnings_and_traceback(
    tmp_path: Path, token: str, code: int
) -> None:
    with Relay() as relay:
        settings = {
            "SECRET_KEY": "x",
            "INSTALLED_APPS": ["django_lettermint"],
            **mailers(relay.options(api_token=token)),
        }
        text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        (tmp_path / "project_settings.py").write_text(text)
        (tmp_path / "manage.py").write_text(MANAGE)
        done = subprocess.run(
            [sys.executable, "-W", "error", "manage.py", "test_lettermint", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["ok"] is (code == 0)
    assert "Traceback" not in done.stderr
    assert ("Next step: " in done.stderr) is (code == 1)


# -- a tenant's mail ---------------------------------------------------------------------


@contextmanager
def tenants(**others: Any) -> Iterator[Relay]:
    """Serve a project with the tenants "acme" and, with a wrong token, "globex"."""
    known = {"acme": {"api_token": "lm_acme"}, "globex": {"api_token": "lm_wrong"}}
    with Relay(other_tokens=["lm_acme"]) as relay:
        options = relay.options(tenants=known.__getitem__, **others)
        with project(options):
            yield relay


@pytest.mark.parametrize("arguments", [["--count", "2"], ["--check"]])
def test_a_tenants_mail_is_tested_with_its_token(arguments: list[str]) -> None:
    with tenants() as relay:
        done = run("--tenant", "acme", *arguments)

    assert (done.err, done.code) == ("", 0)
    assert ", tenant 'acme' → 127.0.0.1:" in done.out
    assert {each.token for each in relay.messages} <= {"lm_acme"}
    assert len(relay.messages) == (0 if "--check" in arguments else 2)
    assert relay.logins.attempts == relay.logins.successes > 0


def test_the_option_tenant_is_tested_by_default() -> None:
    with tenants(tenant="acme") as relay:
        done = run("--json")

    assert done.document["relay"]["tenant"] == "acme"
    assert [each["tenant"] for each in done.document["pools"] if each["messages"]] == []
    assert [each.token for each in relay.messages] == ["lm_acme"]


def test_a_wrong_token_of_a_tenant_is_not_shown() -> None:
    with tenants():
        done = run("--tenant", "globex")

    assert done.code == 1
    assert "lm_wrong" not in done.out + done.err
    assert "where `tenants` looks up its `api_token`" in done.err
    assert "LETTERMINT_API_TOKEN" not in done.err


def test_an_unknown_tenant_is_named_with_a_next_step() -> None:
    with tenants() as relay:
        done = run("--tenant", "initech", "--json")

    assert done.document["error"]["step"] == "tenant"
    assert "tenant 'initech'" in done.err
    assert "Next step: Correct the name, or what `tenants` returns for it" in done.err
    assert relay.statistics.connections == 0
