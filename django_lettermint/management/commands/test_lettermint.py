"""manage.py test_lettermint: send a test mail to Lettermint, step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_lettermint import __version__, pool
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.management import ports
from django_lettermint.management.diagnosis import Diagnosis, Step, send_through_pool
from django_lettermint.management.mailers import find_backend
from django_lettermint.management.next_steps import Failed
from django_lettermint.message import LettermintMessage
from django_lettermint.mime import parse_one

if TYPE_CHECKING:
    from django_lettermint.backend import EmailBackend
    from django_lettermint.conf import RelayConfig, Secret
    from django_lettermint.management.dns_records import Record
    from django_lettermint.results import Outcome, SendResult

#: For outputs whose encoding lacks these signs.
_PLAIN = str.maketrans({"✓": "+", "✗": "x", "→": ":", "…": "..."})


class Command(BaseCommand):
    """Sends a test mail and shows each step with its time, or says what to correct."""

    help = (
        "Test the connection to Lettermint: send a mail (to Lettermint's own test address, "
        "unless told otherwise), show each step with its time, and say what to do "
        "about a failure. The exit code is 0 or 1."
    )
    #: A wrong setting is reported here like any other failure, with a next step.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        add = parser.add_argument
        test_address = "ok@testing.lettermint.co"
        add("recipient", nargs="?", default=test_address, help="default: %(default)s")
        sender = "the sender; default: DEFAULT_FROM_EMAIL"
        add("--from", dest="from_email", metavar="ADDRESS", help=sender)
        add("--route", help="the slug of one of the project's routes")
        add("--tag", help="the mail's tag")
        entry = "an entry of the mail's metadata; may be repeated"
        add("--metadata", action="append", default=[], metavar="KEY=VALUE", help=entry)
        add("--using", metavar="ALIAS", help="the mailer to test (Django 6.1: MAILERS)")
        add("--tenant", metavar="NAME", help="the tenant to test (option `tenants`)")
        many = "mails to send; all but the first go through the connection pool"
        add("--count", type=int, default=1, metavar="N", help=many)
        modes = parser.add_mutually_exclusive_group()
        check = "send no mail: connect, TLS, login, NOOP"
        modes.add_argument("--check", action="store_true", help=check)
        scan = "send no mail and do not log in: try every port"
        modes.add_argument("--scan-ports", action="store_true", help=scan)
        records = "send no mail: look for the DNS records of the sender's domain"
        modes.add_argument("--dns", action="store_true", help=records)
        add("--json", action="store_true", help="print a JSON document instead")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the options say; raise CommandError for every failure."""
        self._quiet = options["json"] or not options["verbosity"]
        self._token: Secret | None = None
        self._document: dict[str, Any] = {
            "ok": False,
            "version": __version__,
            "relay": None,
            "steps": [],
            "messages": [],
            "pools": [],
            "ports": [],
            "dns": None,
            "error": None,
        }
        failure = self._failure(options)
        if options["json"]:
            document = json.dumps(self._document, indent=2, default=_plain)
            self.stdout.write(self._without_token(document))
        if failure:
            text = f"{failure}\nNext step: {failure.next_step}"
            raise CommandError(self._without_token(text)) from failure.error

    def _failure(self, options: Mapping[str, Any]) -> Failed | None:
        """Run; return what failed, if anything did."""
        try:
            self._run(options)
        except Failed as failed:
            result: SendResult | None = getattr(failed.error, "result", None)
            if result:
                self._document["messages"].append(asdict(result))
            self._document["error"] = failed.to_json()
            return failed
        self._document["ok"] = True
        return None

    def _run(self, options: Mapping[str, Any]) -> None:
        messages = _messages(options)
        backend = find_backend(options["using"])
        config = _config(backend, options["tenant"])
        self._token = config.endpoint.token
        self._show_relay(backend.alias, config)
        if options["scan_ports"]:
            self._scan(config)
        elif options["check"]:
            Diagnosis(config, self._show).check()
            self._succeed("The relay accepted the token; no mail was sent.")
        elif not options["dns"]:
            self._send(backend, config, messages, options)
        has_records = options["check"] and asks_for_records(config.endpoint.host)
        if options["dns"] or has_records:
            self._look_up(backend, next(messages).from_email)

    def _show_relay(self, alias: str | None, config: RelayConfig) -> None:
        place = {
            "tenant": config.endpoint.tenant,
            "host": config.endpoint.host,
            "port": config.endpoint.port,
            "security": config.endpoint.security,
        }
        self._document["relay"] = {"alias": alias, **place}
        mailer = f"mailer {alias!r}" if alias else "EMAIL_BACKEND"
        if config.endpoint.tenant is not None:
            mailer += f", tenant {config.endpoint.tenant!r}"
        where = (
            f"{config.endpoint.host}:{config.endpoint.port}, {config.endpoint.security}"
        )
        self._say(f"{mailer} → {where} (django_lettermint {__version__})")
        self._say("")

    def _scan(self, config: RelayConfig) -> None:
        found = ports.scan(config, ports.documented(config))
        self._document["ports"] = [asdict(each) for each in found]
        for each in found:
            self._row(f"{each.port:>5} {each.security:<9}", each)
        ports.require(config.endpoint.port, found)
        self._succeed(f"The configured port, {config.endpoint.port}, works.")

    def _look_up(self, backend: EmailBackend, sender: str) -> None:
        try:
            from django_lettermint.management import dns_records
        except ImportError as error:
            advice = "Install the extra: pip install 'django-lettermint-smtp[dns]'."
            raise Failed(error, "dns", advice) from None
        found = dns_records.look_up(_domain(backend, sender))
        self._document["dns"] = asdict(found)
        self._say(f"DNS of {found.name}, the sender's domain")
        self._say("")
        for record in found.records:
            self._row(f"{record.purpose:<11}", record)
        for line in found.to_enter():
            self._say(line)
        found.require()
        self._succeed("The domain has the records that Lettermint asks for.")

    def _send(
        self,
        backend: EmailBackend,
        config: RelayConfig,
        messages: Iterator[LettermintMessage],
        options: Mapping[str, Any],
    ) -> None:
        done = self._document["messages"]
        result = Diagnosis(config, self._show).send(backend, next(messages))
        done.append(asdict(result))
        try:
            for each in send_through_pool(backend, messages):
                done.append(asdict(each))
        finally:
            self._document["pools"] = pool.get_stats()
            self._show_pools(done[1:])
        mails = _count(len(done), "mail")
        self._succeed(f"The relay accepted {mails} for {options['recipient']}.")
        self._say(f"  message id: {result.message_id}")

    def _show(self, step: Step) -> None:
        self._document["steps"].append(asdict(step))
        self._row(f"{step.name:<8}", step)

    def _show_pools(self, pooled: list[dict[str, Any]]) -> None:
        if not pooled:
            return
        times = [each["elapsed"] * 1000 for each in pooled]
        self._say("")
        self._say(
            f"  {len(times)} more through the pool: {min(times):.1f} to "
            f"{max(times):.1f} ms each"
        )
        for each in self._document["pools"]:
            self._say(
                f"  pool {each['host']}:{each['port']}: "
                f"{_count(each['messages'], 'mail')} over "
                f"{_count(each['opened'], 'connection')}, "
                f"reused {_count(each['reused'], 'time')}, {each['retries']} retried"
            )

    def _row(self, name: str, row: Step | ports.Port | Record) -> None:
        time = f"{row.seconds * 1000:>8.1f} ms"
        self._say(f"  {self._mark(ok=row.ok)} {name} {time}  {row.detail}")

    def _succeed(self, text: str) -> None:
        self._say("")
        self._say(f"{self._mark(ok=True)} {text}")

    def _mark(self, *, ok: bool) -> str:
        return self.style.SUCCESS("✓") if ok else self.style.ERROR("✗")

    def _say(self, text: str) -> None:
        if self._quiet:
            return
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
        self.stdout.write(self._without_token(text))

    def _without_token(self, text: str) -> str:
        """Redact a token that was set as another option, such as the user name."""
        return text.replace(self._token.reveal(), "***") if self._token else text


def _config(backend: EmailBackend, tenant: str | None) -> RelayConfig:
    """Return what the mails are sent with; raise Failed if the tenant has none."""
    if tenant is not None:
        backend.tenant = tenant
    try:
        return backend.usual_sender().config
    except LettermintInvalidMessage as error:
        remedy = "Correct the name, or what `tenants` returns for it, and run it again."
        raise Failed(error, "tenant", remedy) from None


def asks_for_records(host: str) -> bool:
    """Return whether a check of this relay looks for DNS records, too."""
    ours = f".{host.lower()}".endswith(".lettermint.co")
    return ours and find_spec("dns") is not None


def _domain(backend: EmailBackend, sender: str) -> str:
    """Return the domain of a sender, in ASCII."""
    try:
        address = parse_one("from_email", sender, backend.idna_encode).address
    except LettermintInvalidMessage as error:
        raise Failed(error, "options") from None
    domain = address.rpartition("@")[2].lower()
    if "." not in domain:
        raise Failed(
            LookupError(f"the sender's domain, {domain!r}, cannot send mail"),
            "options",
            "Set DEFAULT_FROM_EMAIL to an address of a domain that the Lettermint "
            "dashboard shows as verified, or name a sender with --from.",
        )
    return domain


def _messages(options: Mapping[str, Any]) -> Iterator[LettermintMessage]:
    """Return the mails to send; raise Failed if an option is invalid."""
    count = options["count"]
    if count < 1:
        raise Failed(
            ValueError(f"--count is {count}"),
            "options",
            "Use 1 or more.",
        )
    given = {
        name: options[name] for name in ("route", "tag") if options[name] is not None
    }
    if options["metadata"]:
        given["metadata"] = dict(map(_entry, options["metadata"]))
    return (
        LettermintMessage(
            f"Lettermint test {number} of {count}",
            "Sent by `manage.py test_lettermint`: mail from this project arrives.\n",
            options["from_email"],
            [options["recipient"]],
            **given,
        )
        for number in range(1, count + 1)
    )


def _entry(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise Failed(
            ValueError(f"--metadata {text!r} has no '='"),
            "options",
            "Write it as KEY=VALUE.",
        )
    return key, value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(value: Outcome) -> str:
    """Return the JSON form of the one type that has none."""
    return value.value
