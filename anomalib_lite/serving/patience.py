"""Clients that do not finish what they begin: their connection is closed, lest they hold all that there are."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP over a connection, closed where the head of a request has not come in so many seconds.

    Bodies have a limit of their own, in the application, which can tell what it is that did not come.
    """

    class Patient(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self._rest()
            elif self._waiting is None:  # the first of the next head
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._rest()  # what comes next, and when, is for uvicorn's own limit on idle connections
            super().on_response_complete()

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(seconds, self._close)

        def _rest(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _close(self) -> None:
            if self.transport is not None and not self.transport.is_closing():
                self.transport.close()

    return Patient
