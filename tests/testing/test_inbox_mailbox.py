"""How much the inbox keeps, and when its version changes."""

from __future__ import annotations

import pytest

from django_lettermint.testing.inbox.mailbox import Mailbox
from tests.testing.records import received


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([10, 10, 10, 10, 10], [2, 3, 4]),
        ([300, 300, 300, 500], [2, 3]),
        ([300, 300, 400], [0, 1, 2]),
        ([300, 300, 401], [1, 2]),
        ([10, 5000], [1]),
    ],
)
def test_a_mailbox_keeps_the_newest_mails_up_to_its_size(
    sizes: list[int], kept: list[int]
) -> None:
    mailbox = Mailbox(keep=3, max_octets=1000)
    records = [received(b"x" * size) for size in sizes]
    for record in records:
        mailbox.add(record)
    assert [mail.record for mail in mailbox] == [records[n] for n in reversed(kept)]
    found = [mailbox.get(record.id) is not None for record in records]
    assert found == [number in kept for number in range(len(records))]


def test_a_cleared_mailbox_has_room_again() -> None:
    mailbox = Mailbox(keep=3, max_octets=1000)
    mailbox.add(received(b"x" * 900))
    mailbox.clear()
    for _ in range(3):
        mailbox.add(received(b"x" * 300))
    assert len(list(mailbox)) == 3


def test_each_change_makes_a_new_version() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    versions = [mailbox.version, Mailbox(keep=10, max_octets=1000).version]
    record = received()
    for _ in range(2):
        mailbox.add(record)
        versions.append(mailbox.version)
    (mail,) = mailbox
    for _ in range(2):
        mailbox.opened(mail)
        versions.append(mailbox.version)
    mailbox.clear()
    versions.append(mailbox.version)
    assert len(set(versions)) == 5
    assert (versions[2], versions[4]) == (versions[3], versions[5])


def test_waiting_ends_with_a_new_version_the_timeout_or_the_mailbox() -> None:
    mailbox = Mailbox(keep=10, max_octets=1000)
    assert mailbox.wait(mailbox.version, timeout=0) == mailbox.version
    assert mailbox.wait("earlier", timeout=20) == mailbox.version
    mailbox.close()
    assert mailbox.wait(mailbox.version, timeout=20) == ""
    mailbox.open()
    assert mailbox.wait("earlier", timeout=20) == mailbox.version
