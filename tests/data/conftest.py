"""A web server with the habits of real ones, for tests without a network."""

import functools
import hashlib
import http.server
import threading
import time
import urllib.parse
from email.utils import formatdate

import pytest


class Host:
    """Serves `files`. It may ignore ranges, break transfers off, fail, refuse, stop sending, and tell no size."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.ranges = self.sizes = self.etags = True
        self.breaks = []  # the next transfers end after so many bytes
        self.failures = []  # the next requests are answered with these statuses
        self.gone = False
        self.stall_at = None  # nothing is sent from this byte of a file on
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self))
        self._server.daemon_threads, self._server.handle_error = True, lambda *client: None
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self):
        self.gone = True  # also for connections that are kept
        self._server.shutdown()
        self._server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, host, *arguments):
        self.host = host
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        host, path = self.host, urllib.parse.unquote(self.path.partition("?")[0])
        if host.gone:
            self.close_connection = True
            return
        host.requests.append((self.command, self.path, self.headers.get("Range")))
        status = host.failures.pop(0) if host.failures else 200
        if status == 200 and path not in host.files:
            status = 404
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = host.files[path]
        start, end = 0, len(data)
        if body and host.ranges and self.headers.get("Range"):
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if (start, end) != (0, len(data)) else 200)
        if host.etags:
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.send_header("Date", formatdate())
        if host.sizes:
            self.send_header("Content-Length", str(end - start))
        self.send_header("Content-Type", "text/html" if path.endswith("/") else "application/octet-stream")
        if not host.sizes:
            self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self._send(data[start:end], start)

    def _send(self, data, start):
        limit = self.host.breaks.pop(0) if self.host.breaks else len(data)
        stall = self.host.stall_at
        if stall is not None and start + len(data) > stall:
            self.wfile.write(data[: max(0, stall - start)])
            while self.host.stall_at is not None:
                time.sleep(0.02)
        else:
            self.wfile.write(data[:limit])
        if limit < len(data) or stall is not None:
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def host():
    host = Host()
    yield host
    host.stall_at = None
    host.close()
