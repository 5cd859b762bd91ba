"""The client for asyncio."""

import os
from collections.abc import Sequence
from typing import Self

import httpx

from roundhouse.calls import Calls
from roundhouse.session import Access, OnTrouble, Session
from roundhouse.wire import AsyncWire

PATIENCE = 60.0


class AsyncClient(Calls):
    """For one system, at one or several ``urls``, each asked where the one before fails.

    Signs in by ``token``, or by ``username`` and ``password`` when that is first needed. What is not given is taken
    from ROUNDHOUSE_URL, ROUNDHOUSE_TOKEN, ROUNDHOUSE_USER and ROUNDHOUSE_PASSWORD. ``patience``: seconds for which
    trouble is borne that may pass, of which ``on_trouble`` is told. ``transport``: of httpx, e.g. for a proxy.
    """

    def __init__(
        self,
        urls: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        patience: float = PATIENCE,
        on_trouble: OnTrouble | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        access = Access.of(urls, token, username, password, os.environ)
        super().__init__(Session(AsyncWire(access.urls, transport), access, patience, on_trouble))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.session.wire.hang_up()
