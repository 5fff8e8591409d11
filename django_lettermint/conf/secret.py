"""The wrapper that keeps tokens out of logs, pickles and debug pages."""

from __future__ import annotations

from base64 import b64encode
from operator import is_
from typing import Any, NoReturn, Self


class Secret:
    """A text whose repr is hidden; `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text; call it only where AUTH or a signature needs it."""
        return self._value

    def encoded(self, before: str = "") -> Secret:
        """Return the base64 form that AUTH needs, of `before` and the text."""
        return Secret(b64encode(f"{before}{self._value}".encode()).decode("ascii"))

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "A Secret is never pickled: it would leave this process. "
            "Read it from the settings where it is used."
        )


class Hidden(Secret):
    """Any value that may hold a secret."""

    __slots__ = ()
    _value: Any

    def __init__(self, value: Any) -> None:
        self._value = value

    def reveal(self) -> Any:
        """Return the value."""
        return self._value

    def holds_the_same(self, other: Hidden) -> bool:
        """Return whether the values of two lists are the very same objects."""
        return len(self._value) == len(other._value) and all(
            map(is_, self._value, other._value)
        )


def hide(value: Any) -> Hidden:
    """Wrap a value, unless it is wrapped."""
    # Not isinstance(), which evaluates lazy objects.
    return value if type(value) is Hidden else Hidden(value)
