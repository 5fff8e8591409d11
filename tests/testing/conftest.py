from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.testing.inbox_client import reading
from tests.testing.receiving import receiving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testing.inbox_client import Reader
    from tests.testing.receiving import Receiver


@pytest.fixture
def reader() -> Iterator[Reader]:
    with reading() as reader:
        yield reader


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver
