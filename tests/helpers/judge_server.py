"""A simulated OpenAI-compatible endpoint on loopback, which answers by a rule and injects faults."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = int | str | tuple[int, dict[str, str]]  # a status, a status with headers, or cut, stall, page, empty, other


def longer(question: str) -> str:
    """Prefer the longer answer in either position."""
    first, second = shown(question)
    return f"Comparison: One says more.\nPreferred: {'A' if len(first) > len(second) else 'B'}"


def shown(question: str) -> tuple[str, str]:
    """The two answers of a question by a shipped prompt."""
    _, _, rest = question.partition(" A:\n")
    first, _, rest = rest.partition("\n\n")
    return first, rest.partition(" B:\n")[2].partition("\n\n")[0]


@dataclass
class Judge:
    """The server's state. faults: what the next requests get instead of an answer."""

    answer: Callable[[str], str] = longer
    faults: list[Fault] = field(default_factory=list)
    body: bytes = b'{"error": {"message": "as asked"}}'  # of an error
    finish: Callable[[str], str] = lambda question: "stop"  # finish_reason of an answer
    refuse: Callable[[str], bool] = lambda question: False  # whether a question gets a 400
    hold_after: int | None = None  # answers given before every further request waits for ever
    delay: float = 0.0  # seconds to an answer
    requests: list[dict[str, Any]] = field(default_factory=list)  # every body
    keys: set[str | None] = field(default_factory=set)
    answered: int = 0
    running: int = 0
    most: int = 0  # requests under way at a time
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def judging(**state: Any) -> Iterator[Judge]:
    judge = Judge(**state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"judge": judge}))
    server.daemon_threads = True
    judge.address = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield judge
    finally:
        judge.over.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    judge: Judge
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        judge = self.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.requests.append(body)
            judge.keys.add(self.headers.get("Authorization"))
            judge.running += 1
            judge.most = max(judge.most, judge.running)
            fault = judge.faults.pop(0) if judge.faults else None
            held = fault is None and judge.hold_after is not None and judge.answered >= judge.hold_after
            judge.answered += fault is None and not held
        if held:
            judge.over.wait(60)
        time.sleep(judge.delay)
        with judge.lock:
            judge.running -= 1
        self._answer(body, fault)

    def _answer(self, body: dict[str, Any], fault: Fault | None) -> None:
        if self.path != "/v1/chat/completions":
            self._send(404, b"{}")
        elif isinstance(fault, tuple):
            self._send(fault[0], self.judge.body, fault[1])
        elif isinstance(fault, int):
            self._send(fault, self.judge.body)
        elif fault == "stall":
            self.judge.over.wait(60)
            self.close_connection = True
        elif fault == "page":
            self._send(200, b"<html>Welcome to nginx!</html>", {"Content-Type": "text/html"})
        elif fault == "empty":
            self._send(200, b'{"choices": []}')
        elif fault == "other":
            self._send(200, b'["no", "object"]')
        elif self.judge.refuse(body["messages"][0]["content"]):
            self._send(400, self.judge.body)
        else:
            question = body["messages"][0]["content"]
            text, end = self.judge.answer(question), self.judge.finish(question)
            choice = {"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text}}
            content = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
            }
            self._send(200, json.dumps(content).encode(), cut=fault == "cut")

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        about = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(content))}
        for key, value in about.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut
