"""WebSockets as uvicorn speaks them, with an end to what one client can make the gateway hold.

uvicorn answers each ping at once, however much the client has yet to take, and keeps a message in as many fragments as
it comes in, empty ones too. Both cost memory without limit, before anybody has said who he is.

This builds on what uvicorn (0.54) does inside, and promises nobody: tests/unit/gateway/test_ws_protocol.py says what it
is, and fails where another release does it in another way.
"""

from asyncio import BaseTransport

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

MOST_FRAGMENTS = 1000
"""Of one message, which is short: see ``MAX_MESSAGE``."""


class BoundedProtocol(WebSocketsSansIOProtocol):
    """Reads nothing from a client who has yet to take what was written: so he is waited for by TCP, not in memory."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        if self._has_answers_to_take():
            self.transport.abort()

    def _has_answers_to_take(self) -> bool:
        """To earlier requests on the connection, as nobody has who reads before he asks for more.

        The transport tells one protocol to pause: either that of the answers, or this one, would write without limit.
        """
        http = self.transport.get_protocol()
        answering = isinstance(http, HttpToolsProtocol) and http.cycle and not http.cycle.response_complete
        return answering or self.transport.get_write_buffer_size() > 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        # Else a message waits to be taken by the application: ``receive`` resumes then.
        if not self.read_paused:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # uvicorn resumes reading in other places, too: for the answer to its close. That gets so far, and no further.
        self._wait_for_client()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        # It has resumed reading, if this was the last message that has come.
        self._wait_for_client()
        return message

    def _wait_for_client(self) -> None:
        if not self.writable.is_set():
            self.transport.pause_reading()

    def handle_cont(self, event: Frame) -> None:
        if self.transport.is_closing():
            return  # it came together with what the connection has failed for
        if len(self.frames) >= MOST_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        # The application, which does not know of it yet, would be told else that it sends after a close of its own.
        self.disconnected = True
