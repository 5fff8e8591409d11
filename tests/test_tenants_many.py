"""A thousand tenants over twenty threads, some unknown, some wrong, some rotated."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from django_lettermint import pool
from django_lettermint.backend import EmailBackend
from django_lettermint.exceptions import AuthenticationFailed, LettermintInvalidMessage
from django_lettermint.message import LettermintMessage, extras
from django_lettermint.testing import Relay
from tests.sending import listening

TENANTS = range(1_000)
MOMENTS = ("before", "after")
THREADS = 20


def kind(number: int) -> str:
    return {7: "unknown", 8: "wrong", 9: "rotated"}.get(number % 10, "usual")


def token(number: int, moment: str) -> str:
    """Return the token of a tenant, before or after its rotation."""
    of = moment if kind(number) == "rotated" else kind(number)
    return f"lm_{number}_{of}"


@pytest.mark.slow
def test_each_mail_arrives_under_the_token_of_its_tenant_or_fails_alone() -> None:
    known = {f"{number}": token(number, "before") for number in TENANTS}
    tokens = {token(number, moment) for number in TENANTS for moment in MOMENTS}
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
        known[f"{number}"] = token(number, "after")
        send(number, "after")

    with (
        Relay("lm_of_the_settings", other_tokens=accepted, **options) as relay,
        listening() as heard,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        usual = relay.options("plaintext", tenants=tenants)
        list(threads.map(work, TENANTS))
        found = {str(each.mime["Subject"]): each.token for each in relay.messages}

    expected = {}
    for moment in MOMENTS:
        for number in TENANTS:
            if kind(number) in ("usual", "rotated"):
                expected[f"{number} {moment}"] = token(number, moment)
            if number % 5 == 0:
                expected[f"0 beside {number} {moment}"] = token(0, moment)
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
