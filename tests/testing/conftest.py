from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.testing.inbox_client import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testing.inbox_client import Reader


@pytest.fixture
def reader() -> Iterator[Reader]:
    with reading() as reader:
        yield reader
