"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .listeners import Listeners

#: Seconds for starting, stopping and everything else that the loop is asked to do.
PATIENCE = 5.0


class LoopThread:
    """Runs the listeners between start() and stop(); both may come again."""

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Return when the listeners are open; raises OSError when they cannot be."""
        if self._thread is not None:
            raise RuntimeError("The relay runs already.")
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)),
            name="lettermint-relay",
            daemon=True,
        )
        self._thread.start()
        try:
            ready.result(PATIENCE)
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join(PATIENCE)
        self._thread = self._loop = None

    async def _serve(self, ready: concurrent.futures.Future[None]) -> None:
        self._stopping = asyncio.Event()
        try:
            await self._listeners.open()
        except OSError as error:
            ready.set_exception(error)
        else:
            self._loop = asyncio.get_running_loop()
            ready.set_result(None)
            await self._stopping.wait()
        finally:
            await self._listeners.close()

    def run(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` on the loop and wait for its end."""
        if self._loop is None:
            work.close()
            raise RuntimeError("The relay is not running: call start() or use `with`.")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)
