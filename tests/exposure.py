"""What an error, a log or a debug page shows, to be searched for secrets."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from typing import Any

from django.http import HttpRequest
from django.test import override_settings
from django.utils import functional
from django.views.debug import ExceptionReporter

from django_lettermint.conf import Hidden

#: Files whose frames hold the token: the tests', and the lazy values that they make.
_LEFT_OUT = (os.path.dirname(__file__) + os.sep, functional.__file__)


def strings_in(thing: object, depth: int = 8) -> Iterator[str]:
    """Yield all text and bytes that can be reached from a thing, as a debugger does."""
    return _strings_in(thing, depth, set())


def _strings_in(thing: object, depth: int, seen: set[int]) -> Iterator[str]:
    if id(thing) in seen or issubclass(type(thing), Hidden | type | types.ModuleType):
        return
    seen.add(id(thing))
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, bytes | bytearray | memoryview):
        yield bytes(thing).decode("latin-1")
    elif depth:
        for part in _parts_of(thing):
            yield from _strings_in(part, depth - 1, seen)


def _parts_of(thing: Any) -> Iterator[object]:
    yield repr(thing)
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    elif isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
    else:
        yield from getattr(thing, "__dict__", {}).values()
        for kind in type(thing).__mro__:
            for name in getattr(kind, "__slots__", ()):
                yield getattr(thing, name, None)


def strings_of(error: BaseException) -> Iterator[str]:
    """Yield what an error, its causes, and the frames that it came through hold."""
    chain: list[BaseException] = []
    following: list[BaseException | None] = [error]
    while following:
        each = following.pop()
        if each is not None and each not in chain:
            chain.append(each)
            following += [each.__cause__, each.__context__]
    for each in chain:
        yield from (str(each), repr(each))
        yield from strings_in(each.args)
        yield from strings_in(vars(each))
        trace = each.__traceback__
        while trace:
            if not trace.tb_frame.f_code.co_filename.startswith(_LEFT_OUT):
                yield from strings_in(dict(trace.tb_frame.f_locals))
            trace = trace.tb_next


def pages_of(error: BaseException) -> Iterator[str]:
    """Yield Django's pages and mails about an error."""
    request = HttpRequest()
    request.META["SERVER_NAME"], request.META["SERVER_PORT"] = "localhost", "80"
    for debug in (True, False):
        with override_settings(DEBUG=debug):
            for is_email in (True, False):
                reporter = ExceptionReporter(
                    request, type(error), error, error.__traceback__, is_email=is_email
                )
                yield reporter.get_traceback_html()
                yield reporter.get_traceback_text()
