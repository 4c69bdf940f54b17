"""An HTTP proxy in front of a tracking server that injects the faults of a bad network or server."""

import http.client
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fate = str
"""What becomes of a request:

pass    it is answered
refuse  the connection is closed, the server never hears of it
error   it is answered 500, the server never hears of it
lost    the server does it, the answer never comes
false   the server does it, the answer is 500
half    the server gets half of the body, then the connection breaks
late    it reaches the server only after the client has given up
slow    it is answered after a while
"""


class FaultyProxy:
    """`fate` is asked for each request: (number, from 0; "METHOD path"; body) -> what becomes of it."""

    def __init__(self, server: str, fate: Callable[[int, str, bytes], Fate], late: float = 1.5) -> None:
        self.fate, self.late = fate, late
        self.requests: list[tuple[str, Fate]] = []
        self._address = urlsplit(server)
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length") or 0)
                proxy.decide(self, self.rfile.read(length))

            def log_message(self, *_: object) -> None: ...

        return Handler

    def decide(self, client: BaseHTTPRequestHandler, body: bytes) -> None:
        """Do with one request what its fate says."""
        line = f"{client.command} {client.path}"
        with self._lock:
            fate = self.fate(len(self.requests), line, body)
            self.requests.append((line, fate))
        client.close_connection = fate != "pass"
        if fate in ("late", "slow"):
            time.sleep(self.late)
        if fate == "half":
            self._send_half(client, body)
        if fate in ("refuse", "half"):
            return
        answer = (500, [], b"{}") if fate == "error" else self._forward(client, body)
        if fate == "false":
            answer = (500, [], b"{}")
        if fate in ("lost", "late"):
            return
        status, headers, content = answer
        client.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                client.send_header(name, value)
        client.send_header("Content-Length", str(len(content)))
        client.end_headers()
        client.wfile.write(content)

    def _forward(self, client: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=60)
        headers = {name: value for name, value in client.headers.items() if name.lower() not in ("connection", "host")}
        headers["Host"] = self._address.netloc
        upstream.request(client.command, client.path, body or None, headers)
        answer = upstream.getresponse()
        response = answer.status, answer.getheaders(), answer.read()
        upstream.close()
        return response

    def _send_half(self, client: BaseHTTPRequestHandler, body: bytes) -> None:
        with socket.create_connection((self._address.hostname, self._address.port), timeout=10) as upstream:
            lines = [f"{client.command} {client.path} HTTP/1.1", f"Host: {self._address.netloc}"]
            lines += [f"{name}: {value}" for name, value in client.headers.items() if name.lower() != "host"]
            upstream.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])


def once_each(fate: Fate, chosen: Callable[[str], bool] = lambda line: True) -> Callable[[int, str, bytes], Fate]:
    """Every chosen request meets `fate` when it comes first, and passes when it comes again."""
    met: set[tuple[str, bytes]] = set()

    def decide(number: int, line: str, body: bytes) -> Fate:
        if not chosen(line) or (line, body) in met:
            return "pass"
        met.add((line, body))
        return fate

    return decide
