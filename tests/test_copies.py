"""Backends that are copied and pickled, by themselves and on their messages."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage, send_mail
from django.test import override_settings

from django_lettermint import tasks
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import LettermintInvalidMessage
from django_lettermint.signals import message_failed
from tests.deadends import refused_port
from tests.listening import receiver

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_lettermint.testing import Relay

OTHER = "lm_other_token"
SENDS = "django_lettermint.backend.EmailBackend"
QUEUES = "django_lettermint.tasks.EmailBackend"
MAILERS_EXIST = django.VERSION >= (6, 1)

COPIES = pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
KINDS = pytest.mark.parametrize(
    "kind", [EmailBackend, tasks.EmailBackend], ids=["sends", "queues"]
)
OPTIONS: list[dict[str, Any]] = [
    {"api_token": OTHER},
    {"password": OTHER},
    {"host": "relay.example"},
    {"pool": False},
    {"send_defaults": {"tag": "a"}},
    {"correlation_key": "id"},
]


class Restricted(EmailBackend):
    """Has an attribute of its own."""

    def __init__(self, domain: str = "example.com", **kwargs: Any) -> None:
        self.domains = [domain]
        super().__init__(**kwargs)
        self.sent = 0


@pytest.fixture(autouse=True)
def _token_in_the_settings() -> Any:
    with override_settings(LETTERMINT_API_TOKEN="lm_settings"):
        yield


# -- Copies ----------------------------------------------------------------------------


@COPIES
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_a_copy_keeps_its_whole_configuration(
    duplicate: Callable[[EmailBackend], EmailBackend], options: dict[str, Any]
) -> None:
    backend = EmailBackend(fail_silently=True, **options)

    copied = duplicate(backend)

    assert type(copied) is EmailBackend
    assert copied.config == backend.config
    assert copied.fail_silently is True
    assert copied.send_defaults == backend.send_defaults
    assert copied.correlation_key == backend.correlation_key


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
)
def test_attributes_that_were_set_are_copied(duplicate: Callable[[Any], Any]) -> None:
    backend = Restricted()
    backend.timeout, backend.sent = 2, 3
    backend.domains.append("example.org")
    vars(backend)["owner"] = [backend]

    copied = duplicate(backend)

    assert isinstance(copied, Restricted)
    assert (copied.config.timeout, copied.sent) == (2, 3)
    assert copied.domains == ["example.com", "example.org"]
    assert (copied.domains is backend.domains) is (duplicate is copy.copy)
    assert (vars(copied)["owner"] == [copied]) is (duplicate is not copy.copy)


@COPIES
def test_a_copy_of_the_queueing_backend_keeps_its_configuration(
    duplicate: Callable[[Any], Any],
) -> None:
    backend = tasks.EmailBackend(task_backend="dummy", max_bytes=5, fail_silently=True)

    copied = duplicate(backend)

    message = EmailMessage("Hi", "", "us@example.com", ["ann@example.com"])
    assert copied.send_messages([message]) == 0  # it is larger, but that is silent
    copied.fail_silently = False
    with pytest.raises(LettermintInvalidMessage, match="the queue accepts 5"):
        copied.send_messages([message])
    assert backend.fail_silently is True


@COPIES
@pytest.mark.filterwarnings("ignore:.*connection")
def test_the_copy_of_a_message_goes_out_under_the_token_of_its_backend(
    relay: Relay, duplicate: Callable[[EmailMessage], EmailMessage]
) -> None:
    backend = EmailBackend(**relay.options())
    message = EmailMessage(
        "Hi", "", "us@example.com", ["ann@example.com"], connection=backend
    )

    assert duplicate(message).send() == 1
    assert [each.recipients for each in relay.messages] == [("ann@example.com",)]


# -- Pickles ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((EmailBackend, options) for options in OPTIONS),
        (tasks.EmailBackend, {"max_bytes": 5}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_backend_with_options_of_its_own_is_not_pickled(
    kind: type[Any], options: dict[str, Any]
) -> None:
    words = f"options of its own .{next(iter(options))}."
    with pytest.raises(TypeError, match=words) as raised:
        pickle.dumps(kind(**options))

    assert OTHER not in str(raised.value)


@KINDS
def test_a_backend_of_the_settings_reads_those_where_it_is_unpickled(
    kind: type[Any],
) -> None:
    stored = pickle.dumps(kind(username=None, password=None, fail_silently=False))

    assert b"lm_settings" not in stored
    assert pickle.loads(stored).fail_silently is False
    assert pickle.loads(pickle.dumps(kind(fail_silently=True))).fail_silently is True
    with override_settings(LETTERMINT_API_TOKEN=OTHER):
        backend = pickle.loads(stored)
    assert type(backend) is kind
    sender = backend if kind is EmailBackend else backend._sender
    assert sender.config.endpoint.token.reveal() == OTHER


@pytest.mark.filterwarnings("ignore:.*auth_password")
def test_what_a_receiver_stored_of_a_failed_message_keeps_its_token() -> None:
    stored: list[EmailMessage] = []

    def store(message: EmailMessage, **kwargs: Any) -> None:
        stored.append(copy.deepcopy(message))
        with pytest.raises(TypeError, match="is not pickled"):
            pickle.dumps(message)

    with refused_port() as port, receiver(message_failed, store):
        away = {"HOST": "127.0.0.1", "PORT": port, "SECURITY": "tls", "RETRIES": 0}
        settings = {f"LETTERMINT_{name}": value for name, value in away.items()}
        with (
            override_settings(EMAIL_BACKEND=SENDS, **settings),
            pytest.raises(OSError, match="refused"),
        ):
            send_mail("Hi", "", None, ["ann@example.com"], auth_password=OTHER)

    [message] = stored
    backend: Any = vars(message).get("connection") or vars(message).get("_connection")
    assert backend.config.endpoint.token.reveal() == OTHER


if MAILERS_EXIST:

    @pytest.fixture
    def _mailers() -> Any:
        mailers = {
            "default": {"BACKEND": SENDS, "OPTIONS": {"api_token": "lm_mailer"}},
            "queue": {"BACKEND": QUEUES, "OPTIONS": {"using": "default"}},
        }
        with override_settings(MAILERS=mailers):
            yield

    @pytest.mark.usefixtures("_mailers")
    @pytest.mark.parametrize("alias", ["default", "queue"])
    def test_a_mailer_is_looked_up_by_its_alias_where_it_is_unpickled(
        alias: str,
    ) -> None:
        stored = pickle.dumps(mail.mailers[alias])

        assert b"lm_mailer" not in stored
        assert pickle.loads(stored).alias == alias

    @pytest.mark.usefixtures("_mailers")
    @pytest.mark.filterwarnings("ignore:get_connection")
    @pytest.mark.parametrize("name", ["api_token", "password", "timeout"])
    def test_a_mailer_with_options_laid_over_it_is_not_pickled(name: str) -> None:
        keywords: dict[str, Any] = {name: 7 if name == "timeout" else OTHER}
        with pytest.raises(TypeError, match=f"options of its own .{name}."):
            pickle.dumps(mail.get_connection(**keywords))

    @pytest.mark.usefixtures("_mailers")
    @pytest.mark.filterwarnings("ignore:get_connection")
    def test_a_mailer_with_nothing_laid_over_it_is_pickled() -> None:
        connection = mail.get_connection(username=None, password=None)

        assert pickle.loads(pickle.dumps(connection)).alias == "default"
