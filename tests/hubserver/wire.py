"""One HTTP request: its body read to disk, its answer, and connections that die."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hubserver.faults import Fault

BLOCK = 1 << 16
_PIECE = 1 << 20


class Refusal(Exception):
    """An answer that is an error, with the headers that the Hub sends along."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = headers or {}


class Dead(Exception):
    """The connection is gone; there is nobody to answer."""


class Wire(BaseHTTPRequestHandler):
    """Reads and answers; what it means is the subclass's business."""

    protocol_version = "HTTP/1.1"
    fault: Fault | None = None

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    @property
    def path_only(self) -> str:
        """Decoded but for slashes inside of a part, such as those of a branch."""
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def token(self) -> str:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else ""

    # --- in -------------------------------------------------------------------------------------

    def blocks(self) -> Iterator[bytes]:
        """The body; a fault may slow it down or cut it in the middle."""
        fault = self.fault
        length = self.length
        left = length
        while left:
            if fault and fault.cut == "middle" and left <= length // 2:
                self.die()
            block = self.rfile.read(min(BLOCK, left, max(1, length // 4)))
            if not block:
                raise Dead
            left -= len(block)
            if fault and fault.delay:
                time.sleep(fault.delay)
            yield block
        self.is_read = True

    @property
    def length(self) -> int:
        """Bytes of the body."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            raise Refusal(411, "this Hub wants a Content-Length")
        return int(self.headers.get("Content-Length", "0"))

    def body(self) -> bytes:
        return b"".join(self.blocks())

    def json_body(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body() or b"{}")
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refusal(400, "the body is not an object")
        return value

    # --- out ------------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._answer_head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_file(
        self, status: int, path: Path, first: int, last: int, headers: dict[str, str]
    ) -> Iterator[int]:
        """Send bytes of a file; yields how many, each time before they go out."""
        self._answer_head(status, last - first, headers)
        is_cut = self.fault is not None and self.fault.cut == "answer"
        left = (last - first) // 2 if is_cut else last - first
        self.close_connection |= is_cut
        with path.open("rb") as file, contextlib.suppress(ConnectionError):  # who has enough leaves
            file.seek(first)
            while left and self.command != "HEAD":
                piece = file.read(min(_PIECE, left))
                yield len(piece)
                self.wfile.write(piece)
                left -= len(piece)

    def _answer_head(self, status: int, length: int, headers: dict[str, str]) -> None:
        if self.fault and self.fault.cut == "after":
            self.die()
        if not getattr(self, "is_read", False) and self.length:
            self.close_connection = True  # what was not read would be taken for a request
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def answer_json(self, value: object, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.answer(
            status, json.dumps(value).encode(), {"Content-Type": "application/json"} | named
        )

    def refuse(self, refusal: Refusal) -> None:
        if not getattr(self, "is_read", False):
            # The client reads the answer only once it has sent everything.
            for _ in self.blocks():
                pass
        if refusal.status == 200:  # a captive portal: a web page, whatever was asked for
            self.answer(200, refusal.message.encode(), {"Content-Type": "text/html"})
            return
        headers = {"X-Error-Message": refusal.message.replace("\n", " ")}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self.answer_json({"error": refusal.message}, refusal.status, **headers, **refusal.headers)

    def die(self) -> None:
        """Reset the connection, as a machine does that has lost it."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        raise Dead

    def log_message(self, *_: object) -> None:
        """Tests are not printed at."""
