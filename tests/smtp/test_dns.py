"""Names are looked up within bounds, whatever DNS does."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest

from django_lettermint.smtp import dns as resolver


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_needs_no_look_up(host: str) -> None:
    # The time is over: whatever had to wait would fail.
    (found, *_) = resolver.resolve(host, 465, soon(-1))
    assert found[4][:2] == (host, 465)
    assert found[1] == socket.SOCK_STREAM


def test_a_name_is_looked_up() -> None:
    found = resolver.resolve("localhost", 25, soon())
    assert {info[4][0] for info in found} <= {"127.0.0.1", "::1"}


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match=r"(?i)name"):
        resolver.resolve("nope.invalid", 25, soon(20))


def test_a_look_up_that_hangs_ends_in_time_and_leaves_its_thread_behind() -> None:
    answer = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="look-up timed out"):
        resolver._before(soon(0.1), answer.wait)
    assert time.monotonic() - began < 2
    (left,) = (each for each in threading.enumerate() if "resolver" in each.name)
    assert left.daemon  # so that a process can end meanwhile
    answer.set()
    left.join(5)
    assert not left.is_alive()


def test_a_look_up_that_is_in_time_returns_its_answer() -> None:
    assert resolver._before(soon(), lambda: "answer") == "answer"


def test_without_new_threads_a_look_up_is_made_in_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert resolver._before(soon(), threading.get_ident) == threading.get_ident()


def test_the_name_for_ehlo_is_one() -> None:
    name = resolver.fqdn(soon())
    assert name == "[127.0.0.1]" or re.fullmatch(r"[A-Za-z0-9.-]+", name)
    assert resolver.fqdn(soon()) is name


def test_a_name_that_the_deadline_cuts_short_is_looked_up_again() -> None:
    resolver._own_name.clear()
    resolver.fqdn(soon(-1))
    assert resolver._own_name == []
    name = resolver.fqdn(soon())
    assert resolver._own_name == [name]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("mail.example.org", "mail.example.org"),
        ("box", "box"),
        ("under_score", "[127.0.0.1]"),
        ("m\u00fcller", "[127.0.0.1]"),
        ("a\r\nMAIL FROM:<x@y>", "[127.0.0.1]"),
        ("box\n", "[127.0.0.1]"),
        ("", "[127.0.0.1]"),
    ],
)
def test_a_name_that_ehlo_cannot_say_becomes_an_address(found: str, said: str) -> None:
    assert resolver._ehlo_name(soon(), lambda: found) == said


def test_a_name_that_takes_too_long_becomes_an_address() -> None:
    answer = threading.Event()

    def look_up() -> str:
        answer.wait()
        return "late.example.org"

    assert resolver._ehlo_name(soon(0.05), look_up) == "[127.0.0.1]"
    answer.set()
