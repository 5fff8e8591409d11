"""Wrappers of values: ours keep tokens secret, Django's are lazy."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, NoReturn, Self

from django.utils.functional import LazyObject, Promise


class Hidden:
    """Any value that may hold a secret: its repr is hidden, and it is never pickled."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}('***')"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"A {type(self).__name__} is never pickled: it would leave this process. "
            "Read it from the settings where it is used."
        )


class Secret(Hidden):
    """A text whose repr is hidden; `reveal()` returns it."""

    __slots__ = ()
    value: str

    def reveal(self) -> str:
        """Return the text; call it only where AUTH or a signature needs it."""
        return self.value

    def encoded(self, before: str = "") -> Secret:
        """Return the base64 form that AUTH needs, of `before` and the text."""
        return Secret(b64encode(f"{before}{self.value}".encode()).decode("ascii"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return self.value == other.value

    def __hash__(self) -> int:
        return hash((Secret, self.value))


def hide(value: Any) -> Hidden:
    """Wrap a value, unless it is wrapped."""
    # Not isinstance(), which evaluates lazy objects.
    return value if type(value) is Hidden else Hidden(value)


def unwrap(value: Any) -> Any:
    """Return the value behind a lazy object or lazy text of Django's.

    Their pickled form has it: the wrapped object of a LazyObject, and the call that makes
    the result of lazy().
    """
    # Not isinstance(), which looks at the wrapped object of a LazyObject.
    if issubclass(type(value), Promise):
        _, (function, args, kwargs, *_) = value.__reduce__()
        return unwrap(function(*args, **kwargs))
    if issubclass(type(value), LazyObject):
        _, (wrapped,) = value.__reduce__()
        return unwrap(wrapped)
    return value
