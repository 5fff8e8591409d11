"""manage.py test_lettermint, against real servers."""

from __future__ import annotations

import io
import json
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
    asks_for_records,
)
from django_lettermint.management.next_steps import Failed, advise
from django_lettermint.testing import Relay
from tests.deadends import blackhole, refused_port
from tests.faults import Action, On, Phase, drop, hang, normal, raw, reply
from tests.faultserver import TOKEN, FaultServer
from tests.management.dnsserver import dns_server
from tests.programs import environment
from tests.sending import listening
from tests.snippets import DOCS

if TYPE_CHECKING:
    from django.core.mail import EmailMessage

PAGE = (DOCS / "test_lettermint.md").read_text("utf-8")
DUMMY = "django.core.mail.backends.dummy.EmailBackend"

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


def mail_settings(options: dict[str, object], backend: str = BACKEND) -> dict[str, Any]:
    """Return the settings that make the project send in this way."""
    if HAS_MAILERS:
        return {"MAILERS": {"default": {"BACKEND": backend, "OPTIONS": options}}}
    named = {f"LETTERMINT_{name.upper()}": value for name, value in options.items()}
    return {"EMAIL_BACKEND": backend, **named}


@contextmanager
def project(options: dict[str, object], backend: str = BACKEND) -> Iterator[None]:
    with override_settings(**mail_settings(options, backend)):
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
    with FaultServer(script, **traits) as server, project(server.options(**options)):
        yield server


@contextmanager
def receiving(number: int, error: Exception) -> Iterator[None]:
    """Raise from a pre_send receiver for one of the mails."""

    def receive(message: EmailMessage, **_: object) -> None:
        if f"test {number} of" in message.subject:
            raise error

    pre_send.connect(receive)
    try:
        yield
    finally:
        pre_send.disconnect(receive)


# -- mails -------------------------------------------------------------------------------


def test_each_step_is_shown_with_its_time_and_details(relay: Relay) -> None:
    ran = run()

    rows = re.findall(r"^  ✓ (\w+) +(\d+\.\d) ms  (.+)$", ran.out, re.MULTILINE)
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
    [message] = relay.messages
    assert message.recipients == ("ok@testing.lettermint.co",)
    accepted = "✓ The relay accepted 1 mail for ok@testing.lettermint.co."
    assert accepted in ran.out
    assert f"message id: {message.metadata['django_message_id']}" in ran.out
    assert "pool" not in ran.out
    assert (ran.err, ran.code) == ("", 0)


@pytest.mark.parametrize(
    ("tls", "steps"),
    [("starttls", STARTTLS_STEPS), (None, ["DNS", "TCP", "EHLO", "AUTH"])],
)
def test_the_steps_follow_the_security(tls: Any, steps: list[str]) -> None:
    with fault(tls=tls):
        assert run("--json").steps == steps + MAIL_STEPS


def test_the_options_end_up_in_the_mail() -> None:
    defaults = {"tag": "default", "route": "transactional"}
    with Relay() as relay, project(relay.options(send_defaults=defaults)):
        run()
        run(
            "ada@example.com",
            "--from=Shop <shop@example.com>",
            "--route=broadcast",
            "--tag=smoke test",
            "--metadata=order_id=4711",
            "--metadata=formula=a=b",
        )
        default, message = relay.messages

    assert (default.route, default.tag) == ("transactional", "default")
    assert message.mail_from == "shop@example.com"
    assert message.recipients == ("ada@example.com",)
    assert (message.route, message.tag) == ("broadcast", "smoke test")
    assert {"order_id": "4711", "formula": "a=b"}.items() <= message.metadata.items()
    assert message.idempotency_key


def test_pipelining_and_chunking_are_off_for_the_steps_only() -> None:
    features = ("PIPELINING", "CHUNKING", "8BITMIME")
    with fault(features=features, changed={"chunking": True}) as server:
        run("--count=2")

        sent = [line for _, line in server.commands if line.startswith(b"BDAT")]
        assert len(sent) == 1
        assert server.delivered == {"ok@testing.lettermint.co": 2}
        assert server.violations == []


def test_all_mails_but_the_first_go_through_the_pool(relay: Relay) -> None:
    with listening() as heard:
        out = run("--count=4").out

    assert len(relay.messages) == len(heard.sent) == 4
    assert re.search(r"  3 more through the pool: \d+\.\d to \d+\.\d ms each", out)
    place = f"pool 127.0.0.1:{relay.port('tls')}"
    assert f"{place}: 3 mails over 1 connection, reused 2 times, 0 retried" in out
    assert "✓ The relay accepted 4 mails for " in out
    assert relay.statistics.connections == 2


@pytest.mark.parametrize("number", [1, 2])
def test_a_failure_ends_the_command_whatever_fail_silently_says(number: int) -> None:
    refusal = On("rcpt", reply(550, "5.1.1 unknown"), message=number)
    with (
        fault(refusal, changed={"fail_silently": True}) as server,
        listening() as heard,
    ):
        ran = run("--count=5", "--json")

        assert sum(server.delivered.values()) == number - 1
    assert ran.code == 1
    outcomes = [message["outcome"] for message in ran.document["messages"]]
    assert outcomes == ["sent"] * (number - 1) + ["not_sent"]
    assert ran.document["messages"][-1]["phase"] == "rcpt"
    assert ran.error["type"] == "RecipientsRefused"
    assert ran.error["code"] == 550
    assert ran.error["step"] == ("RCPT" if number == 1 else "rcpt")
    assert len(ran.document["pools"]) == (number > 1)
    [(_, _, error)] = heard.failed
    assert str(error).startswith(ran.err.partition("\n")[0])


def test_an_unconfirmed_mail_is_unknown_and_not_sent_again() -> None:
    with fault(On("dot", drop())) as server:
        ran = run("--json")
        assert server.connections == 1

    assert [message["outcome"] for message in ran.document["messages"]] == ["unknown"]


def test_a_command_that_is_interrupted_closes_its_connection() -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            if "DATA" in text:
                raise KeyboardInterrupt
            return super().write(text)

    with listening() as heard, fault() as server:
        with pytest.raises(KeyboardInterrupt):
            call_command("test_lettermint", stdout=Interrupted())
        assert server.wait_for(lambda: not server.open_connections)

    assert [result.outcome.value for _, result, _ in heard.failed] == ["not_sent"]


# -- without a mail ----------------------------------------------------------------------


def test_check_logs_in_and_sends_nothing(relay: Relay) -> None:
    ran = run("--check")

    assert ran.code == 0
    assert "✓ NOOP" in ran.out
    assert "✓ The relay accepted the token; no mail was sent." in ran.out
    assert relay.messages == []
    assert relay.logins.successes == 1


@pytest.mark.parametrize("action", [reply(500), drop()], ids=["500", "lost"])
def test_check_requires_a_reply_to_noop(action: Action) -> None:
    with fault(On("noop", action)):
        ran = run("--check", "--json")

    assert ran.code == 1
    assert ran.steps == [*TLS_STEPS, "NOOP"]
    assert ran.document["steps"][-1]["detail"] == "no 250"
    assert ran.error["step"] == "NOOP"


def test_scan_ports_tries_the_documented_ports_and_the_one_in_use(relay: Relay) -> None:
    ran = run("--scan-ports")

    rows = re.findall(r"^  [✓✗] +(\d+) (\w+) ", ran.out, re.MULTILINE)
    assert [int(port) for port, _ in rows] == [*ports.PREFERENCE, relay.port("tls")]
    assert sorted(ports.PREFERENCE) == sorted(SECURITY_BY_PORT)
    assert f"✓ The configured port, {relay.port('tls')}, works." in ran.out
    assert ran.code == 0
    assert relay.logins.attempts == 0


def test_scan_ports_fails_if_the_port_in_use_is_closed() -> None:
    with refused_port() as port:
        options = {"api_token": TOKEN, "host": "127.0.0.1", "port": port}
        with project({**options, "security": "tls"}):
            ran = run("--scan-ports", "--json")

    assert (ran.code, ran.error["step"]) == (1, "ports")
    assert "allow port 465 or 587" in ran.error["next_step"]
    tried = {entry["port"]: entry["ok"] for entry in ran.document["ports"]}
    assert tried == dict.fromkeys([*ports.PREFERENCE, port], False)


def test_a_scan_names_the_best_port_to_use_instead() -> None:
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


def test_a_scan_waits_no_longer_than_the_timeout() -> None:
    with Relay() as relay, blackhole() as silent:
        config = backend_config(relay.options(timeout=0.2)).relay

        (port,) = ports.scan(config, {silent: "tls"})

    assert port.detail.endswith("timed out")
    assert port.seconds < ports.PATIENCE - 1


# -- DNS records; test_dns_records.py has what is looked for -----------------------------

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
    assert (ran.code, relay.statistics.connections) == (0, 0)


def test_dns_lists_the_records_to_enter(relay: Relay) -> None:
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


def test_dns_looks_for_the_domain_of_default_from_email_in_ascii(relay: Relay) -> None:
    with dns_server({}), override_settings(DEFAULT_FROM_EMAIL="a@Größe.test"):
        ran = run("--dns", "--json")

    assert ran.document["dns"]["name"] == "xn--gre-6ka8i.test"
    assert "does not exist" in ran.error["message"]


@pytest.mark.parametrize("sender", ["webmaster@localhost", "nobody"])
def test_dns_needs_a_sender_with_a_domain(relay: Relay, sender: str) -> None:
    ran = run("--dns", "--json", f"--from={sender}")

    assert (ran.code, ran.error["step"]) == (1, "options")
    assert sender.rpartition("@")[2] in ran.error["message"]


def test_check_looks_for_the_records_at_lettermint_only() -> None:
    assert asks_for_records("SMTP.lettermint.co")
    assert not asks_for_records("lettermint.co.example.com")


def test_without_dnspython_dns_names_the_extra(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "django_lettermint.management.dns_records"
    monkeypatch.setitem(sys.modules, "dns", None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(name, raising=False)

    assert not asks_for_records("smtp.lettermint.co")
    assert "django-lettermint-smtp[dns]" in run("--dns", "--json").error["next_step"]


# -- failures, each with its next step ---------------------------------------------------


def at(phase: Phase, action: Action, **traits: Any) -> Any:
    return fault(On(phase, action), **traits)


@contextmanager
def closed() -> Iterator[None]:
    with refused_port() as port, Relay() as relay, project(relay.options(port=port)):
        yield


@contextmanager
def blocked() -> Iterator[None]:
    with (
        blackhole() as port,
        Relay() as relay,
        project(relay.options(port=port, timeout=0.2)),
    ):
        yield


LATER = "Wait some minutes"
MODE = "TLS 1.2 or later in this way"
LOST = "the server closed the connection"
NOWHERE = {"api_token": TOKEN, "host": "relay.invalid", "timeout": 2, "retries": 0}
WRONG_TOKEN: Any = {"changed": {"api_token": "lm_wrong"}}
IMPATIENT: Any = {"changed": {"timeout": 0.3}}
WITHOUT_TLS: Any = {"tls": None, "changed": {"security": "tls"}}
WITHOUT_STARTTLS: Any = {"tls": None, "changed": {"security": "starttls"}}

#: What is wrong, the failing step, what is said of it, and what of its remedy.
FAILURES: dict[str, tuple[Any, str, str, str]] = {
    "no token": (project({}), "settings", "API_TOKEN", "Correct this setting, then"),
    "no module": (project({}, "nowhere.Backend"), "settings", "nowhere", "Correct"),
    "another": (project({}, DUMMY), "settings", f"{PLACE} is {DUMMY}", f"Set {PLACE}"),
    "no host": (project(NOWHERE), "DNS", "DNS on relay.invalid:465", "getent hosts"),
    "closed": (closed(), "TCP", "Connection refused", "start the relay first"),
    "blocked": (blocked(), "TCP", "timed out", "block outgoing mail ports"),
    "silence": (at("banner", hang(), **IMPATIENT), "greeting", "timed", "`timeout`"),
    "no service": (at("banner", reply(554)), "greeting", "554", "Lettermint's support"),
    "no SMTP": (at("banner", raw(b"hi\r\n")), "greeting", "hi", "an SMTP relay"),
    "no EHLO": (at("ehlo", reply(502)), "EHLO", "502", "Lettermint's support"),
    "lost": (at("ehlo", drop()), "EHLO", LOST, "an SMTP relay"),
    "expired": (fault(cert="expired"), "TLS", "has expired", "clock"),
    "not yet valid": (fault(cert="not_yet"), "TLS", "not yet valid", "clock"),
    "another name": (fault(cert="wrong_host"), "TLS", "mismatch", "name that is in"),
    "untrusted": (fault(cert="untrusted"), "TLS", "certificate", "`ca_file`"),
    "no TLS": (fault(**WITHOUT_TLS), "TLS", "TLS with ", MODE),
    "no STARTTLS": (fault(**WITHOUT_STARTTLS), "STARTTLS", "", "the default, 465"),
    "token": (fault(**WRONG_TOKEN), "AUTH", "535", "LETTERMINT_API_TOKEN"),
    "no login": (fault(auth=()), "AUTH", "AUTH (nothing), not", "`auth_mechanism`"),
    "login later": (at("auth", reply(454, "busy")), "AUTH", "busy", LATER),
    "size": (fault(features=("SIZE 100",)), "message", "100", "options"),
    "sender": (at("mail", reply(550)), "MAIL", "550", "Verify"),
    "recipient": (at("rcpt", reply(550)), "RCPT", "550", "suppression list"),
    "recipient later": (at("rcpt", reply(450)), "RCPT", "450", LATER),
    "data": (at("data", reply(554)), "DATA", "554", "--route"),
    "loss": (at("data", drop()), "DATA", LOST, "run it again"),
    "stall": (at("data", hang(), **IMPATIENT), "DATA", "timed out", "raise `timeout`"),
    "content": (at("dot", reply(554)), "reply", "554", "--route"),
    "unconfirmed": (at("dot", drop()), "reply", "", "before you send it again"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_shows_its_step_the_reason_and_the_next_step(failure: str) -> None:
    trouble, step, reason, remedy = FAILURES[failure]
    with trouble as server:
        ran = run("--json")
        # Nothing is tried twice, not even what may have been sent.
        assert server is None or server.connections == 1

    assert (ran.code, ran.error["step"]) == (1, step)
    assert reason in ran.error["message"]
    assert remedy in ran.error["next_step"]
    assert ran.err == f"{ran.error['message']}\nNext step: {ran.error['next_step']}"
    assert not re.search(r"\berror\.\w", ran.err)  # no attribute of an exception
    if step != "settings":
        *before, last = ran.document["steps"]
        assert all(each["ok"] for each in before)
        assert (last["name"], last["ok"]) == (step, False)
        assert reason in last["detail"]
        assert [each["attempts"] for each in ran.document["messages"]] == [1]


@pytest.mark.parametrize(
    ("argument", "problem", "remedy"),
    [
        ("--tag=a\tb", "tag", "this command's options"),
        ("--from=nobody", "from_email", "this command's options"),
        ("", "no recipient", "this command's options"),
        ("--metadata=key", "--metadata 'key' has no '='", "Write it as KEY=VALUE."),
        ("--count=0", "--count is 0", "Use 1 or more."),
    ],
)
def test_an_option_that_breaks_a_rule_reaches_no_relay(
    relay: Relay, argument: str, problem: str, remedy: str
) -> None:
    ran = run(argument)

    assert ran.code == 1
    text, _, next_step = ran.err.partition("\nNext step: ")
    assert problem in text
    assert remedy in next_step
    assert relay.statistics.connections == 0


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (AnymailCancelSend("not today"), "a pre_send receiver cancelled the mail"),
        (RuntimeError("no template"), "RuntimeError: no template"),
    ],
)
def test_an_error_of_a_pre_send_receiver_is_a_failure_like_any_other(
    relay: Relay, error: Exception, text: str, number: int
) -> None:
    with receiving(number, error):
        ran = run("--count=2", "--json")

    assert ran.code == 1
    assert ran.error["type"] == type(error).__name__
    assert ran.error["message"] == text
    assert ran.error["step"] == "message"
    assert "pre_send" in ran.error["next_step"]
    assert len(relay.messages) == number - 1


def test_an_unexpected_error_can_be_traced() -> None:
    assert "--traceback" in advise(RuntimeError())
    with fault(On("rcpt", reply(550))), pytest.raises(CommandError) as raised:
        call_command("test_lettermint", stdout=io.StringIO())
    assert isinstance(raised.value.__cause__, RecipientsRefused)


# -- settings ----------------------------------------------------------------------------


@pytest.mark.skipif(not HAS_MAILERS, reason="Django 6.1 has MAILERS")
def test_using_names_a_mailer_where_there_are_mailers(relay: Relay) -> None:
    entry = {"BACKEND": BACKEND, "OPTIONS": relay.options()}
    with override_settings(MAILERS={"default": {"BACKEND": DUMMY}, "relay": entry}):
        ran, default = run("--using=relay", "--json"), run()
        unknown = run("--using=nobody", "--json").error

    assert ran.document["relay"]["alias"] == "relay"
    assert default.err.endswith("or test a mailer that does: --using relay.")
    known = "'default', 'relay'"
    assert unknown["message"] == f"--using nobody is not in MAILERS, which has {known}"
    assert unknown["next_step"] == "Use one of these, or omit --using."
    assert unknown["step"] == "options"


def test_without_mailers_email_backend_is_tested_on_every_django() -> None:
    settings = {"EMAIL_BACKEND": BACKEND}
    with Relay() as relay, override_settings(**settings, ANYMAIL=relay.settings()):
        ran = run("--check")
        document = run("--check", "--json").document
        alias = run("--using=default", "--json").error

    assert ran.out.startswith(f"EMAIL_BACKEND → 127.0.0.1:{relay.port('tls')}, tls")
    assert document["relay"]["alias"] is None
    assert "needs the setting MAILERS" in alias["message"]
    assert alias["next_step"].startswith("Omit --using")


# -- how it looks ------------------------------------------------------------------------


def test_the_document_has_exactly_the_documented_keys(relay: Relay) -> None:
    document = run("--json", "--count=2").document

    table = PAGE.partition("## JSON")[2]
    assert re.findall(r"^\| `(\w+)` ", table, re.MULTILINE) == list(document)
    assert (document["ok"], document["error"]) == (True, None)
    assert document["version"] == django_lettermint.__version__
    assert list(document["steps"][0]) == ["name", "ok", "seconds", "detail"]


def test_the_output_follows_verbosity_and_colours(relay: Relay) -> None:
    assert run("--verbosity=0") == Ran("", "", 0)
    assert "\x1b[" in run(force_color=True).out
    assert "\x1b[" not in run(no_color=True).out


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


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--verbosity=3"]])
def test_the_token_is_not_shown(arguments: list[str]) -> None:
    # Some write the token where the user name belongs, and the pool's statistics, the
    # addresses or a server's reply may contain it.
    echo = reply(550, f"5.7.1 {TOKEN}")
    for script in (On("rcpt", normal), On("auth", echo), On("rcpt", echo)):
        with fault(script, changed={"username": TOKEN}, user=TOKEN):
            ran = run("--count=2", f"--from={TOKEN}@x.test", *arguments)
            assert TOKEN not in ran.out + ran.err
    with fault(On("auth", echo)), pytest.raises(CommandError) as raised:
        call_command("test_lettermint", stdout=io.StringIO())
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


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
            **mail_settings(relay.options(api_token=token)),
        }
        text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        (tmp_path / "project_settings.py").write_text(text)
        (tmp_path / "manage.py").write_text(MANAGE)
        done = subprocess.run(
            [sys.executable, "-W", "error", "manage.py", "test_lettermint", "--json"],
            cwd=tmp_path,
            env=environment(PYTHONIOENCODING="ascii"),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["ok"] is (code == 0)
    assert "Traceback" not in done.stderr
    assert ("Next step: " in done.stderr) is (code == 1)


# -- tenants -----------------------------------------------------------------------------


@contextmanager
def tenants(**others: Any) -> Iterator[Relay]:
    """Serve a project with the tenants "acme" and, with a wrong token, "globex"."""
    known = {"acme": {"api_token": "lm_acme"}, "globex": {"api_token": "lm_wrong"}}
    others["tenants"] = known.__getitem__
    with Relay(other_tokens=["lm_acme"]) as relay, project(relay.options(**others)):
        yield relay


@pytest.mark.parametrize("arguments", [["--tenant", "acme"], []])
def test_a_tenants_mail_is_tested_with_its_token(arguments: list[str]) -> None:
    with tenants(**({} if arguments else {"tenant": "acme"})) as relay:
        done = run("--count=2", *arguments)
        document = run("--check", "--json", *arguments).document

    assert (done.err, done.code) == ("", 0)
    assert ", tenant 'acme' → 127.0.0.1:" in done.out
    assert document["relay"]["tenant"] == "acme"
    assert [each.token for each in relay.messages] == ["lm_acme"] * 2
    assert relay.logins.attempts == relay.logins.successes == 3


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_a_wrong_token_of_a_tenant_is_its_own(arguments: list[str]) -> None:
    with tenants():
        done = run("--tenant", "globex", *arguments)

    assert done.code == 1
    assert "lm_wrong" not in done.out + done.err
    assert "open the project of tenant 'globex'" in done.err
    assert "where `tenants` looks up its `api_token`" in done.err
    assert "LETTERMINT_API_TOKEN" not in done.err


def test_an_unknown_tenant_is_named_with_a_next_step() -> None:
    with tenants() as relay:
        done = run("--tenant", "initech", "--json")

    assert done.error["step"] == "tenant"
    assert "tenant 'initech'" in done.err
    assert "Next step: Correct the name, or what `tenants` returns for it" in done.err
    assert relay.statistics.connections == 0
