"""The HTTP server of the demo: Werkzeug's, with bounds on the connections and on their time.

Werkzeug's starts a thread for each connection, however many there are, and waits for ever for what
a client sends.
"""

import socket
import time
from contextlib import suppress
from io import BufferedReader, RawIOBase
from threading import BoundedSemaphore
from typing import Any, Final

from flask import Flask
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

MAX_CONNECTIONS: Final = 16
"""The number of connections that are served at the same time; others are refused."""
HEADER_SECONDS: Final = 10.0
"""How long a client may take to send the header of a request."""
BODY_SECONDS: Final = 60.0
"""How long a client may take to send the rest of a request, and then to receive the answer."""

_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\n\r\n"
    b'{"error": "Too many connections are open at the moment: try again."}'
)


class DemoServer(ThreadedWSGIServer):
    """A server on a socket that is listening already.

    Args:
        app: the web application.
        listener: the socket.
        header_seconds: see :data:`HEADER_SECONDS`.
        body_seconds: see :data:`BODY_SECONDS`.
    """

    def __init__(
        self,
        app: Flask,
        listener: socket.socket,
        header_seconds: float = HEADER_SECONDS,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        host, port = listener.getsockname()
        super().__init__(host, port, app, _Handler, fd=listener.fileno())
        self.header_seconds, self.body_seconds = header_seconds, body_seconds
        self._free = BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or refuse it if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.setblocking(False)
            with suppress(OSError):
                request.send(_BUSY)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until its end; called in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(WSGIRequestHandler):
    """Serves the one request of a connection; a client that is too slow is disconnected."""

    server: DemoServer

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._timed = _TimedReader(self.connection, self.server.body_seconds)
        self._timed.allow(self.server.header_seconds)
        self.rfile = BufferedReader(self._timed)

    def run_wsgi(self) -> None:
        self._timed.allow(self.server.body_seconds)
        super().run_wsgi()

    def log(self, type: str, message: str, *args: Any) -> None:
        """Log no request, neither a good one nor one that is slow or invalid."""


class _TimedReader(RawIOBase):
    """Reads from a connection until a deadline. A timeout for each byte would bound nothing.

    Args:
        connection: a socket.
        send_seconds: the timeout of the socket whenever nothing is being read from it.
    """

    def __init__(self, connection: socket.socket, send_seconds: float) -> None:
        super().__init__()
        self._connection = connection
        self._send_seconds = send_seconds
        connection.settimeout(send_seconds)

    def allow(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._send_seconds)
