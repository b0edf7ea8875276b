"""A real HTTP server on this machine that can fail in the ways servers and networks do."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

BLOCK = 1 << 16


class ShardServer(ThreadingHTTPServer):
    """Serves the files of ``folder``; no ranges.

    ``fault(method, name)`` gives None, the number of a status, or one of "drop", "short", "flip",
    "no length", "no version". ``latency`` is in seconds, ``rate`` in bytes a second of each
    connection. ``asked`` lists method and name of all requests.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host = f"[{host}]" if ":" in host else host
        super().__init__((host, 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | str | None] = lambda method, name: None
        self.latency, self.rate = 0.0, 0.0

    def url(self, name: str = "", user: str = "") -> str:
        """That of a file, or of the folder."""
        return f"http://{user}{self.host}:{self.server_port}/{name}"

    def times(self, method: str, name: str) -> int:
        """How often the file was asked for."""
        return self.asked.count((method, name))

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no failure of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ShardServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        name = urlsplit(self.path).path.lstrip("/")
        self.server.asked.append((self.command, name))
        time.sleep(self.server.latency)
        fault, path = self.server.fault(self.command, name), self.server.folder / name
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        content = bytearray(path.read_bytes())
        self.send_response(200)
        if fault != "no length":
            self.send_header("Content-Length", str(len(content)))
        if fault != "no version":
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        self.close_connection = fault in ("no length", "short", "drop")
        self.end_headers()
        if self.command == "GET":
            self._send(content, fault)

    def _send(self, content: bytearray, fault: int | str | None) -> None:
        if fault == "flip":
            content[len(content) // 2] ^= 1
        if fault == "short":
            content = content[: len(content) // 2]
        if fault == "drop":
            content = bytearray()
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            self.wfile.write(block)
            if self.server.rate:
                time.sleep(len(block) / self.server.rate)


@contextmanager
def serving(folder: Path, host: str = "127.0.0.1") -> Iterator[ShardServer]:
    """A server of ``folder`` as long as the block runs."""
    server = ShardServer(folder, host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
