"""A proxy before the object server that counts requests and makes some of them fail, as networks and stores do."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["503", "500", "409", "reset", "lost"]
"""`reset` cuts the connection before the store sees the request, `lost` after it has answered."""

CHANGING = ("PUT", "POST", "DELETE")


class Proxy:
    """`faults` befall the next requests whose method is one of `methods`, one each."""

    def __init__(self, endpoint: str) -> None:
        self._upstream = urlsplit(endpoint).netloc
        self.requests: Counter[str] = Counter()
        self.faults: deque[Fault] = deque()
        self.methods: tuple[str, ...] = (*CHANGING, "GET", "HEAD")
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def handle(self, client: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = client.rfile.read(int(client.headers.get("Content-Length", 0)))
        with self.lock:
            self.requests[client.command] += 1
            fault = self.faults.popleft() if self.faults and client.command in self.methods else None
        if fault == "reset":
            client.close_connection = True
            client.connection.close()
            return
        if fault is not None and fault != "lost":
            client.send_response(int(fault))
            client.send_header("Content-Length", "0")
            client.end_headers()
            return
        status, headers, answer = self._forward(client, body)
        if fault == "lost":
            client.close_connection = True
            client.connection.close()
            return
        client.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                client.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            client.send_header("Content-Length", str(len(answer)))
        client.end_headers()
        client.wfile.write(answer)

    def _forward(self, client: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self._upstream, timeout=30)
        try:
            connection.putrequest(client.command, client.path, skip_host=True, skip_accept_encoding=True)
            for name, value in client.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()


@contextmanager
def proxy_before(endpoint: str) -> Iterator[Proxy]:
    """A running proxy on a free loopback port."""
    proxy = Proxy(endpoint)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
