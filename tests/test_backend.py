"""Lists of messages through the backend, and what a server sees of them."""

from __future__ import annotations

import json
import pickle
import re
from base64 import b64decode
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.signals import pre_send
from django.core.mail import EmailMessage
from django.utils.functional import SimpleLazyObject
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_lettermint import exceptions
from django_lettermint.backend import EmailBackend
from django_lettermint.envelope import Envelope
from django_lettermint.message import LettermintMessage, freeze
from django_lettermint.results import Outcome, Phase
from tests.faultserver import FaultServer, On, drop, reply
from tests.hostile import HOSTILE, leaves, lines, text_lines
from tests.listening import listening, names, receiver
from tests.mime.conformance import check_lines
from tests.sending import message

if TYPE_CHECKING:
    from django_lettermint.outgoing import OutgoingMessage
    from django_lettermint.testing import Relay


def backend(server: Relay | FaultServer, **options: Any) -> EmailBackend:
    return EmailBackend(**server.options(**options))


# -- Lists -----------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [[], (), None, iter([])])
def test_an_empty_list_does_nothing(relay: Relay, empty: Any) -> None:
    assert backend(relay).send_messages(empty) == 0
    assert relay.statistics.connections == 0


class OperationalError(Exception):
    """What a database raises."""


class Broken(EmailMessage):
    """A message whose own code raises."""

    @property
    def subject(self) -> Any:
        raise OperationalError("no database today")

    @subject.setter
    def subject(self, _: Any) -> None:
        """Take what Django sets."""


class Text(str):
    """Text of a template that is missing."""

    __slots__ = ()

    def __str__(self) -> str:
        raise OperationalError("no template today")


class Silent(OperationalError):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise OperationalError("no text")


def raise_silent() -> None:
    raise Silent


def changed(**attributes: Any) -> Any:
    """Return a message whose attributes were set after it was made."""
    mail = message()
    vars(mail).update(attributes)
    return mail


def lazy_text() -> Any:
    return SimpleLazyObject(partial(str, Text()))


def rendered_once() -> Any:
    """Return a message to several that cannot be rendered for the second one."""

    class Once(EmailMessage):
        times = 0

        def message(self, **keywords: Any) -> Any:
            type(self).times += 1
            if self.times > 1:
                raise OperationalError("no database any more")
            return super().message(**keywords)

    mail: Any = Once("Hi", "Hello", "us@example.com", ["a@b.example", "c@d.example"])
    mail.merge_metadata = {}
    return mail


#: What is sent, and a part of the error's text.
UNFIT: dict[str, tuple[Any, str]] = {
    "to": (lambda: message('"a\r\nRCPT TO:<eve@example.com>"@example.com'), "to"),
    "subject": (lambda: EmailMessage("a\r\nX-Evil: 1", "", None, ["a@b.c"]), "subject"),
    "none": (lambda: changed(to=None), "check its addresses"),
    "subject raises": (lambda: Broken("", "", "a@b.c", ["c@d.e"]), "no database"),
    "body raises": (lambda: changed(body=lazy_text()), "no template"),
    "attachment raises": (
        lambda: changed(attachments=[(lazy_text(), b"1", "x-a/b")]),
        "no template",
    ),
    "recipients raise": (
        lambda: changed(recipients=partial(str, Text())),
        "no template",
    ),
    "an error raises": (lambda: changed(recipients=raise_silent), "prepared: Silent;"),
    "a copy raises": (rendered_once, "no database any more"),
    "nothing": (lambda: None, "give an EmailMessage"),
    "a mapping": (lambda: {"to": ["a@b.example"]}, "give an EmailMessage"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_prepared_ends_alone_and_says_what_is_wrong(
    relay: Relay, name: str
) -> None:
    make, words = UNFIT[name]
    with pytest.raises(exceptions.LettermintInvalidMessage) as caught:
        backend(relay).send_messages([message(), make(), message()])
    assert words in str(caught.value)
    assert [each.outcome for each in caught.value.results] == [
        Outcome.SENT,
        Outcome.NOT_SENT,
        Outcome.SENT,
    ]
    assert len(relay.messages) == 2
    assert not any(b"Evil" in each.content for each in relay.messages)
    if "raise" in name:
        assert isinstance(caught.value.__cause__, OperationalError)


def test_a_list_that_cannot_be_prepared_makes_no_connection(relay: Relay) -> None:
    with pytest.raises(exceptions.LettermintInvalidMessage):
        backend(relay).send_messages([message("no address"), message("none")])
    assert relay.statistics.connections == 0


def test_the_first_error_is_raised_with_all_results(relay: Relay) -> None:
    def cancel(**arguments: Any) -> None:
        if arguments["message"].to == ["eve@example.com"]:
            raise AnymailCancelSend

    relay.refuse("bob@example.com", 450, "4.2.0 later")
    mails = [message(), message("bob@example.com"), message("no"), message()]
    mails += [message("eve@example.com"), EmailMessage()]
    with (
        receiver(pre_send, cancel),
        pytest.raises(exceptions.RecipientsRefused) as caught,
    ):
        backend(relay).send_messages(mails)
    error = caught.value
    assert error.result is error.results[1]
    assert error.transient
    assert [each.phase for each in error.results] == [
        Phase.DONE,
        Phase.RCPT,
        Phase.MESSAGE,
        Phase.DONE,
        Phase.CANCELLED,
        Phase.NO_RECIPIENTS,
    ]


# -- Receivers of pre_send, and interrupts ---------------------------------------------


def test_what_a_pre_send_receiver_raises_comes_out_after_earlier_ends(
    relay: Relay,
) -> None:
    def fail(**arguments: Any) -> None:
        if arguments["message"].to == ["bob@example.com"]:
            raise RuntimeError("a receiver's own problem")

    mails = [message(), message("bob@example.com"), message()]
    with (
        receiver(pre_send, fail),
        listening() as heard,
        pytest.raises(RuntimeError, match="own problem"),
    ):
        backend(relay).send_messages(mails)
    assert names(heard) == ["post_send", "message_sent"]
    assert len(relay.messages) == 1


@pytest.mark.parametrize(("given", "ended"), [(list, 3), (iter, 2)])
def test_an_interrupt_while_preparing_ends_each_message_that_was_taken(
    relay: Relay, given: Any, ended: int
) -> None:
    class Interrupted(EmailBackend):
        def prepare(self, message: EmailMessage) -> OutgoingMessage:
            if message.to == ["bob@example.com"]:
                raise KeyboardInterrupt
            return super().prepare(message)

    mails: list[Any] = [message(), message("bob@example.com"), message(), "no message"]
    with listening() as heard, pytest.raises(KeyboardInterrupt):
        Interrupted(**relay.options()).send_messages(given(mails))
    assert names(heard) == ["message_failed"] * ended
    for each in mails[:ended]:
        assert each.anymail_status.esp_response.outcome is Outcome.NOT_SENT
    assert relay.messages == []


def test_large_messages_are_not_all_held_in_memory(relay: Relay) -> None:
    prepared: list[int] = []

    def count(**_: Any) -> None:
        prepared.append(len(relay.messages))

    mails = [message() for _ in range(4)]
    for mail in mails:
        mail.attach("a.bin", b"x" * 5 * 1024 * 1024, "application/octet-stream")
    with receiver(pre_send, count):
        assert backend(relay).send_messages(mails) == 4
    # The third is looked at when the first two are out.
    assert prepared == [0, 0, 2, 2]


# -- The caller's message --------------------------------------------------------------


def test_a_message_with_a_key_of_its_own_is_delivered_once(relay: Relay) -> None:
    mail = freeze(
        LettermintMessage(
            "Hi",
            "Hello",
            "shop@example.com",
            ["ann@example.com"],
            idempotency_key="order-7",
            headers={"Date": "Thu, 01 Jan 2026 00:00:00 +0000", "Message-ID": "<a@b>"},
        )
    )
    for _ in range(2):
        assert backend(relay).send_messages([mail]) == 1
    assert len(relay.messages) == 1
    assert relay.statistics.replays == 1


# -- What the relay reads --------------------------------------------------------------


def test_almost_25_mb_arrive(relay: Relay) -> None:
    mail = message()
    data = bytes(range(256)) * (72 * 1024)
    mail.attach("data.bin", data, "application/octet-stream")
    assert backend(relay).send_messages([mail]) == 1
    # Not by the email package, which takes its time.
    found = re.search(rb"\r\n\r\n([\w+/=\r\n]{999,})\r\n--", relay.messages[0].content)
    assert found
    assert b64decode(found[1]) == data


def between_data_and_dot(received: bytes) -> list[bytes]:
    """Take the contents out of a recording, as RFC 5321 section 4.5.2 tells to."""
    found = re.findall(rb"^DATA\r\n(.*?)^\.\r\n", received, re.DOTALL | re.MULTILINE)
    return [re.sub(rb"^\.", b"", content, flags=re.MULTILINE) for content in found]


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(st.sampled_from(HOSTILE), max_size=5).map("".join),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_bodies_are_stuffed_so_that_another_parser_finds_them(
    bodies: list[str],
    pipelining: bool,  # noqa: FBT001
) -> None:
    mails = [message() for _ in bodies]
    for mail, body in zip(mails, bodies, strict=True):
        mail.body = body
    with FaultServer() as server:
        sent = backend(server, pipelining=pipelining, pool=False).send_messages(mails)
        [recording] = server.received.values()
        delivered = [each.content for each in server.deliveries]
        assert server.violations == []
    assert sent == len(bodies)
    assert between_data_and_dot(recording) == delivered
    for content, body in zip(delivered, bodies, strict=True):
        check_lines(content)
        assert text_lines(leaves(content)[0]) == lines(body)


# -- Connections -----------------------------------------------------------------------


def test_open_tells_whether_it_made_a_connection(relay: Relay) -> None:
    assert backend(relay).open() is True
    assert backend(relay).open() is False
    assert relay.statistics.connections == 1


def test_a_with_block_and_close_leave_the_connection_to_the_pool(relay: Relay) -> None:
    with backend(relay) as connection:
        connection.send_messages([message()])
        connection.close()
        connection.send_messages([message()])
    assert relay.statistics.connections == 1
    assert relay.statistics.open == 1


def test_open_raises_unless_told_not_to(relay: Relay) -> None:
    relay.stop()
    with pytest.raises(exceptions.ConnectFailed):
        backend(relay, ca_file=None, retries=0).open()
    assert backend(relay, ca_file=None, retries=0, fail_silently=True).open() is None
    relay.start()


def test_the_timeout_can_be_set_on_the_backend(relay: Relay) -> None:
    connection = backend(relay)
    assert connection.timeout == 10
    connection.timeout = 3
    assert connection.config.timeout == 3
    connection.timeout = None
    assert connection.config.timeout == 10


# -- Safety ----------------------------------------------------------------------------


def test_a_wrong_token_costs_one_login_and_says_what_to_do(relay: Relay) -> None:
    mails = [message() for _ in range(60)]
    with (
        listening() as heard,
        pytest.raises(exceptions.AuthenticationFailed) as caught,
    ):
        backend(relay, api_token="lm_wrong_token").send_messages(mails)
    assert relay.logins.attempts == 1
    assert names(heard) == ["message_failed"] * 60
    assert {each.outcome for each in caught.value.results} == {Outcome.NOT_SENT}
    assert {each.phase for each in caught.value.results} == {Phase.AUTH}
    assert "LETTERMINT_API_TOKEN" in str(caught.value)
    assert "dashboard" in str(caught.value)
    assert caught.value.smtp_code == 535


def test_failing_silently_does_not_weaken_tls() -> None:
    with FaultServer(cert="self_signed") as server:
        assert backend(server, fail_silently=True).send_messages([message()]) == 0
        assert server.logins == []
        assert server.deliveries == []


# -- Messages whose delivery stayed unknown, repeated later ----------------------------


REFUSED = reply(550, "5.7.1 not now")
#: The end of a message is never confirmed, though it is delivered, nor is a first repeat.
UNCONFIRMED = [
    On("dot", times=1, do=drop(deliver=True)),
    On("mail", message=2, do=REFUSED),
]


def unknown(server: FaultServer, **options: Any) -> exceptions.DeliveryUnknown:
    """Send a message whose delivery stays unknown."""
    mail = EmailMessage("Hi", "Hello", "us@x.test", ["ann@x.test", "bob@x.test"])
    with pytest.raises(exceptions.DeliveryUnknown) as raised:
        backend(server, **options).send_messages([mail])
    return raised.value


@pytest.mark.parametrize("carried", ["json", "pickle"])
def test_another_process_can_repeat_it_and_delivers_it_once(carried: str) -> None:
    with FaultServer(UNCONFIRMED, idempotency=True) as server:
        error = unknown(server)
        assert error.repeatable
        if carried == "json":
            text = json.dumps([each.to_json() for each in error.envelopes])
            envelopes = [Envelope.from_json(form) for form in json.loads(text)]
        else:
            envelopes = pickle.loads(pickle.dumps(error)).envelopes
        result = backend(server).repeat(envelopes)
        assert result.outcome is Outcome.SENT
        assert {each.status for each in result.recipients.values()} == {"queued"}
        assert error.result
        assert result.message_id == error.result.message_id
        assert server.delivered == {"ann@x.test": 1, "bob@x.test": 1}


def test_a_repeat_that_is_refused_leaves_it_unknown() -> None:
    script = [*UNCONFIRMED, On("mail", message=3, do=REFUSED)]
    with FaultServer(script, idempotency=True) as server:
        error = unknown(server)
        problem = "a repeat was answered by 550"
        with pytest.raises(exceptions.DeliveryUnknown, match=problem) as raised:
            backend(server).repeat(error.envelopes)
    assert raised.value.result
    assert raised.value.result.outcome is Outcome.UNKNOWN


def test_what_could_be_delivered_twice_is_not_repeated() -> None:
    with FaultServer(UNCONFIRMED, idempotency=True) as server:
        error = unknown(server, idempotency=False)
        assert not error.repeatable
        with pytest.raises(
            exceptions.LettermintInvalidMessage, match="delivered twice"
        ):
            backend(server).repeat(error.envelopes)
        assert server.connections == 1
