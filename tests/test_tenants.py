"""One process sends for many Lettermint projects, each mail under its own project's token."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from anymail.signals import pre_send
from django.core.mail import EmailMessage
from django.test import override_settings

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.envelope import Envelope
from django_lettermint.exceptions import AuthenticationFailed, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras, freeze
from django_lettermint.results import Outcome, Phase
from django_lettermint.testing import Logins, Relay
from tests.faults import On, reply
from tests.faultserver import FaultServer
from tests.listening import receiver
from tests.sending import interruptible, listening, result

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sending import Heard

TENANTS = ("acme", "globex", "initech")
TOKEN = "lm_of_the_settings"


def token(name: str) -> str:
    return f"lm_of_{name}"


class Tenants:
    """A resolver that knows some tenants, and counts what it is asked."""

    def __init__(self, **options: Mapping[str, object]) -> None:
        self.asked: Counter[str] = Counter()
        self.known = {name: {"api_token": token(name)} for name in TENANTS} | options

    def __call__(self, name: str) -> Mapping[str, object]:
        self.asked[name] += 1
        return self.known[name]


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay(TOKEN, other_tokens=[token(name) for name in TENANTS]) as running:
        yield running


@pytest.fixture
def tenants() -> Tenants:
    return Tenants()


@pytest.fixture
def backend(relay: Relay, tenants: Tenants) -> EmailBackend:
    return EmailBackend(**relay.options(), tenants=tenants)


@pytest.fixture
def heard() -> Iterator[Heard]:
    with listening() as found:
        yield found


def mail(subject: str = "Hello", **attributes: Any) -> LettermintMessage:
    return LettermintMessage(
        subject, "How are you?", "ann@example.org", ["bob@example.org"], **attributes
    )


def subjects(relay: Relay) -> dict[str, str]:
    """Return the token under which each mail came, by its subject."""
    return {str(each.mime["Subject"]): each.token for each in relay.messages}


def sent_under(relay: Relay) -> list[str]:
    return [each.token for each in relay.messages]


# -- which tenant a message has ----------------------------------------------------------


def test_a_property_that_fails_is_not_a_message_without_a_tenant(
    relay: Relay, backend: EmailBackend
) -> None:
    class Invoice(EmailMessage):
        customer: Any = None

        @property
        def tenant(self) -> str:
            return str(self.customer.slug)

    message = Invoice("Hello", "", "ann@example.org", ["bob@example.org"])
    with pytest.raises(LettermintInvalidMessage, match="no attribute 'slug'"):
        backend.send_messages([message])

    assert relay.messages == []


def test_settings_and_classes_may_name_the_tenant(
    relay: Relay, tenants: Tenants
) -> None:
    class OfAcme(EmailBackend):
        tenant = "acme"

    with override_settings(ANYMAIL=relay.settings(tenants=tenants, tenant="globex")):
        EmailBackend().send_messages([mail("settings")])
    OfAcme(**relay.options(), tenants=tenants).send_messages([mail("class")])
    options = relay.options(tenants=tenants, tenant="globex")
    OfAcme(**options).send_messages([mail("option")])

    assert subjects(relay) == {
        "settings": token("globex"),
        "class": token("acme"),
        "option": token("globex"),
    }


def test_a_tenant_may_have_other_defaults(relay: Relay) -> None:
    tenants = Tenants(
        acme={"api_token": token("acme"), "send_defaults": {"tag": "of-acme"}},
        globex={"api_token": token("globex"), "correlation_key": "id", "timeout": 33},
    )
    options = relay.options(send_defaults={"tag": "of-all"})
    backend = EmailBackend(**options, tenants=tenants)

    backend.send_messages([mail(name, tenant=name) for name in ("acme", "globex")])

    assert backend.for_tenant("globex").config.timeout == 33
    backend.timeout = 7
    assert backend.for_tenant("globex").config.timeout == 7
    acme, globex = relay.messages
    assert (acme.tag, "id" in acme.metadata) == ("of-acme", False)
    assert (globex.tag, "id" in globex.metadata) == ("of-all", True)


# -- what is no tenant -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["attribute", "block", "option"])
def test_a_tenant_without_options_ends_its_message_and_no_other(
    place: str, relay: Relay, tenants: Tenants, heard: Heard
) -> None:
    given = {"tenant": "unknown"} if place == "option" else {}
    options = relay.options(fail_silently=True)
    backend = EmailBackend(**options, tenants=tenants, **given)
    lost = mail("lost", tenant="unknown") if place == "attribute" else mail("lost")
    own = mail("own", tenant=None)

    with extras(tenant="unknown") if place == "block" else nullcontext():
        assert backend.send_messages([lost, own]) == 1

    [(failed, found, error)] = heard.failed
    assert failed is lost
    assert (found.outcome, found.phase) == (Outcome.NOT_SENT, Phase.MESSAGE)
    assert type(error) is LettermintInvalidMessage
    assert "'unknown'" in str(error)
    assert [each for each, _ in heard.sent] == [own]
    assert sent_under(relay) == [TOKEN]
    assert relay.logins.successes == 1


def test_a_wrong_token_ends_the_mail_of_its_tenant_alone(relay: Relay) -> None:
    tenants = Tenants(globex={"api_token": "lm_wrong"})
    backend = EmailBackend(**relay.options(), tenants=tenants)
    messages = [mail(name, tenant=name) for name in TENANTS * 2]

    place = "check `api_token` of tenant 'globex'"
    with pytest.raises(AuthenticationFailed, match=place) as raised:
        backend.send_messages(messages)

    outcomes = [each.outcome.value for each in raised.value.results]
    assert outcomes == ["sent", "not_sent", "sent"] * 2
    assert set(subjects(relay)) == {"acme", "initech"}
    # Each tenant's login is tried once.
    assert relay.logins == Logins(attempts=3, successes=2)


# -- lists -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2])
def test_a_list_may_mix_tenants(
    width: int, relay: Relay, tenants: Tenants, heard: Heard
) -> None:
    options = relay.options(batch_connections=width, fail_silently=True)
    backend = EmailBackend(**options, tenants=tenants)
    names = [("acme", "unknown", None, "globex")[number % 4] for number in range(120)]
    messages = [mail(f"{number}", tenant=name) for number, name in enumerate(names)]

    assert backend.send_messages(iter(messages)) == 90

    expected = {
        f"{number}": token(name) if name else TOKEN
        for number, name in enumerate(names)
        if name != "unknown"
    }
    assert subjects(relay) == expected
    assert [str(each.subject) for each, _ in heard.sent] == list(expected)
    failed = [int(each.subject) for each, *_ in heard.failed]
    assert sorted(failed) == list(range(1, 120, 4))
    errors = {id(error): str(error) for *_, error in heard.failed}
    assert (len(errors), len({*errors.values()})) == (30, 1)
    # Each call asks the resolver anew.
    assert tenants.asked == {"acme": 1, "unknown": 1, "globex": 1}
    backend.send_messages([mail(tenant="acme"), mail(tenant="acme")])
    assert tenants.asked["acme"] == 2


def test_a_relay_that_turns_all_away_is_not_awaited_for_each_tenant() -> None:
    messages = [mail(tenant=f"{number}") for number in range(50)]

    with FaultServer([On("banner", do=reply(421, "4.3.2 maintenance"))]) as server:
        options = server.options(retries=3)
        own = {"api_token": options["api_token"]}
        with pytest.raises(ConnectionError):
            EmailBackend(**options, tenants=lambda name: own).send_messages(messages)
        assert server.connections == 4

    assert [result(each).attempts for each in messages] == [4] + [0] * 49


def test_a_tenants_open_connection_is_used_while_the_relay_takes_no_other() -> None:
    with FaultServer() as server:
        options = server.options(retries=0, fail_silently=True)
        own = {"api_token": options["api_token"]}
        backend = EmailBackend(**options, tenants=lambda name: own)
        assert backend.send_messages([mail(tenant="globex")]) == 1
        server.script.append(On("banner", do=reply(421, "4.7.0 too many")))
        messages = [mail(tenant=name) for name in TENANTS]
        assert backend.send_messages(messages) == 1

    outcomes = [result(each).outcome.value for each in messages]
    assert outcomes == ["not_sent", "sent", "not_sent"]


def test_an_interrupt_ends_the_mail_of_all_tenants(
    relay: Relay, backend: EmailBackend, heard: Heard
) -> None:
    with interruptible() as strike:
        relay.add_listener(lambda _: strike() if len(relay.messages) == 2 else None)
        with pytest.raises(KeyboardInterrupt):
            backend.send_messages([mail(name, tenant=name) for name in TENANTS])

    ended = [each for each, *_ in heard.sent] + [each for each, *_ in heard.failed]
    assert sorted(str(each.subject) for each in ended) == sorted(TENANTS)


# -- connections -------------------------------------------------------------------------


def test_without_a_pool_a_tenants_list_has_one_connection(
    relay: Relay, tenants: Tenants
) -> None:
    backend = EmailBackend(**relay.options(pool=False), tenants=tenants)
    with extras(tenant="acme"):
        backend.send_messages([mail(f"{number}") for number in range(60)])

    assert set(sent_under(relay)) == {token("acme")}
    assert relay.logins.successes == 1


def test_tenants_have_pools_and_statistics_of_their_own(relay: Relay) -> None:
    backend = EmailBackend(
        **relay.options(), tenants=lambda name: {"api_token": token("acme")}
    )
    for name in ("one", "one", "two", None):
        backend.send_messages([mail(tenant=name)])

    found = {each["tenant"]: each["messages"] for each in pool.get_stats()}
    assert found == {"one": 2, "two": 1, None: 1}
    assert relay.logins.successes == 3


def test_open_makes_a_connection_of_the_tenant(relay: Relay, tenants: Tenants) -> None:
    backend = EmailBackend(**relay.options(), tenants=tenants, tenant="acme")

    assert backend.open() is True
    assert [each["tenant"] for each in pool.get_stats()] == ["acme"]
    assert backend.open() is False

    backend.tenant = "unknown"
    with pytest.raises(LettermintInvalidMessage):
        backend.open()
    backend.fail_silently = True
    assert backend.open() is None


# -- what is logged ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"), [("globex", "on localhost:"), ("unknown", "")]
)
def test_the_log_names_the_tenant_and_its_relay(
    name: str, place: str, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = Tenants(globex={"api_token": "lm_wrong", "host": "localhost"})
    backend = EmailBackend(**relay.options(fail_silently=True), tenants=tenants)

    backend.send_messages([mail(tenant=name)])

    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert f" for tenant {name!r} " in record.message
    assert place in record.message
    assert "lm_wrong" not in caplog.text


# -- copies, pickles, repeats ------------------------------------------------------------


def pickled(thing: Any) -> Any:
    octets = pickle.dumps(thing)
    assert token("acme").encode() not in octets
    return pickle.loads(octets)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copies_of_messages_and_backends_keep_their_tenant(
    duplicate: Callable[[Any], Any], relay: Relay, tenants: Tenants
) -> None:
    with override_settings(ANYMAIL=relay.settings(tenants=tenants)):
        message = duplicate(mail(tenant="acme", connection=EmailBackend()))
        message.send()
        duplicate(message).send()
        backend = duplicate(duplicate(EmailBackend(tenant="globex")))
        assert backend.send_messages([mail()]) == 1

    assert sent_under(relay) == [*[token("acme")] * 2, token("globex")]


def test_a_repeat_goes_out_for_the_same_tenant(relay: Relay, tenants: Tenants) -> None:
    backend = EmailBackend(**relay.options(idempotency=True), tenants=tenants)
    acme, globex = (
        backend.prepare(mail(tenant=name)).submissions[0].envelope
        for name in ("acme", "globex")
    )
    form = Envelope.from_json(json.loads(json.dumps(pickled(acme).to_json())))

    with extras(tenant="globex"):
        assert backend.repeat([form]).outcome is Outcome.SENT

    assert sent_under(relay) == [token("acme")]
    with pytest.raises(LettermintInvalidMessage, match="several tenants"):
        backend.repeat([acme, globex])


# -- the signed header of frozen messages, for queues that keep headers only -------------


def test_a_frozen_message_keeps_its_tenant(relay: Relay, backend: EmailBackend) -> None:
    with extras(tenant="acme"):
        frozen = freeze(mail())
    other = EmailMessage(
        frozen.subject,
        frozen.body,
        frozen.from_email,
        frozen.to,
        headers=frozen.extra_headers,
    )

    def change(sender: type, message: EmailMessage, **others: object) -> None:
        message.body = f"{message.body}\nOur address"
        message.to = ["staging@example.org"]

    with extras(tenant="globex"), receiver(pre_send, change):
        backend.send_messages([other])

    [received] = relay.messages
    assert received.token == token("acme")
    assert received.recipients == ("staging@example.org",)
    assert b"tenant" not in received.content.lower()
    assert b"acme" not in received.content
    frozen.tenant = "globex"  # an attribute wins
    backend.send_messages([frozen])
    assert sent_under(relay)[1:] == [token("globex")]


def frozen(**changes: Any) -> LettermintMessage:
    """Return a message that was signed, and changed since."""
    message = freeze(mail(tenant="acme"))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def forged(value: Any) -> LettermintMessage:
    return mail(headers={"x-lettermint-tenant": value})


def renamed() -> LettermintMessage:
    message = frozen()
    signed = message.extra_headers["X-Lettermint-Tenant"]
    message.extra_headers["X-Lettermint-Tenant"] = signed.replace("acme", "globex")
    return message


#: Headers that were not signed, or for another message.
FORGED: dict[str, Callable[[], LettermintMessage]] = {
    "unsigned": lambda: forged("acme"),
    "another signature": lambda: forged("acme:c2lnbmF0"),
    "empty": lambda: forged(""),
    "not ASCII": lambda: forged("acmé:x"),
    "no text": lambda: forged(5),
    "none": lambda: forged(None),
    "merged": lambda: frozen(
        extra_headers={},
        merge_headers={"bob@example.org": {"X-Lettermint-Tenant": "acme"}},
    ),
    "another name": renamed,
    "sender": lambda: frozen(from_email="eve@example.org"),
    "to": lambda: frozen(to=["eve@example.org"]),
    "one more": lambda: frozen(to=["bob@example.org", "eve@example.org"]),
    "bcc": lambda: frozen(bcc=["eve@example.org"]),
    "subject": lambda: frozen(subject="Your invoice"),
    "body": lambda: frozen(body="Pay here"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_header_that_was_not_signed_for_this_message_is_refused(
    forgery: str, relay: Relay, backend: EmailBackend, heard: Heard
) -> None:
    message = FORGED[forgery]()
    rule = r"(?i)(signature does not match|header '?X-Lettermint-Ten)"
    with pytest.raises(LettermintInvalidMessage, match=rule):
        backend.send_messages([message, mail("other")])

    assert [each for each, *_ in heard.failed] == [message]
    assert subjects(relay) == {"other": TOKEN}


def test_a_header_is_verified_by_the_secret_keys_of_the_settings(
    relay: Relay, backend: EmailBackend
) -> None:
    message = frozen()
    with (
        override_settings(SECRET_KEY="another"),
        pytest.raises(LettermintInvalidMessage, match="SECRET_KEY"),
    ):
        backend.send_messages([message])
    with override_settings(SECRET_KEY="old"):
        message = frozen()
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old"]):
        backend.send_messages([message])

    assert sent_under(relay) == [token("acme")]


# -- a thousand tenants over twenty threads, some unknown, some wrong, some rotated ------

NUMBERS = range(1_000)
MOMENTS = ("before", "after")
THREADS = 20


def kind(number: int) -> str:
    return {7: "unknown", 8: "wrong", 9: "rotated"}.get(number % 10, "usual")


def token_of(number: int, moment: str) -> str:
    """Return the token of a tenant, before or after its rotation."""
    of = moment if kind(number) == "rotated" else kind(number)
    return f"lm_{number}_{of}"


@pytest.mark.slow
def test_each_mail_arrives_under_the_token_of_its_tenant_or_fails_alone() -> None:
    known = {f"{number}": token_of(number, "before") for number in NUMBERS}
    tokens = {token_of(number, moment) for number in NUMBERS for moment in MOMENTS}
    accepted = [each for each in tokens if "wrong" not in each]
    options: dict[str, Any] = {"ports": {"plaintext": 0}, "mechanisms": ("PLAIN",)}

    def tenants(name: str) -> dict[str, str]:
        if kind(int(name)) == "unknown":
            raise LookupError(name)
        return {"api_token": known[name]}

    def send(number: int, moment: str) -> None:
        """Send a tenant's mail, as a request of it does, with one of another tenant."""
        message, other = (
            LettermintMessage(subject, "", "ann@example.org", ["bob@example.org"])
            for subject in (f"{number} {moment}", f"0 beside {number} {moment}")
        )
        other.tenant = "0"
        messages = [message] if number % 5 else [message, other]
        with (
            suppress(AuthenticationFailed, LettermintInvalidMessage),
            extras(tenant=f"{number}"),
        ):
            EmailBackend(**usual).send_messages(messages)

    def work(number: int) -> None:
        send(number, "before")
        known[f"{number}"] = token_of(number, "after")
        send(number, "after")

    with (
        Relay("lm_of_the_settings", other_tokens=accepted, **options) as relay,
        listening() as heard,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        usual = relay.options("plaintext", tenants=tenants)
        list(threads.map(work, NUMBERS))
        found = {str(each.mime["Subject"]): each.token for each in relay.messages}

    expected = {}
    for moment in MOMENTS:
        for number in NUMBERS:
            if kind(number) in ("usual", "rotated"):
                expected[f"{number} {moment}"] = token_of(number, moment)
            if number % 5 == 0:
                expected[f"0 beside {number} {moment}"] = token_of(0, moment)
    assert found == expected
    assert len(relay.messages) == len(heard.sent) == len(found)
    failed: Counter[Any] = Counter(
        (kind(int(str(message.subject).split()[0])), type(error))
        for message, _, error in heard.failed
    )
    assert failed == {
        ("unknown", LettermintInvalidMessage): 200,
        ("wrong", AuthenticationFailed): 200,
    }
    stats = pool.get_stats()
    assert len(stats) < 64 + 2 * THREADS
    assert sum(each["size"] for each in stats) <= 64
