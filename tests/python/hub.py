"""Runs the hub on a free port, with a client that shares no code with it.

The client uses `websockets`, the HTTP client of the standard library, and its own implementation of tokens (RFC 7515
with HS256).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("FANFARE_BIN", ROOT / "target/debug/fanfare")).resolve()
SECRET = "a secret that only the tests in Python use"
# The time limit of a failing test. It is long, because a busy machine may need most of it.
DEADLINE = 90.0
CONTROL = {"ack", "ping", "pong", "error", "gap", "goaway", "auth_expiring"}


def sign(claims: dict, *, secret: str = SECRET, header: dict | None = None) -> str:
    """Returns a token with any claims and any header."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head = header or {"alg": "HS256", "typ": "JWT"}
    signed = ".".join(part(json.dumps(value).encode()) for value in (head, claims))
    if head["alg"] == "none":
        return signed + "."
    digest = {"HS256": hashlib.sha256, "HS512": hashlib.sha512}[head["alg"]]
    return f"{signed}.{part(hmac.new(secret.encode(), signed.encode(), digest).digest())}"


def token(sub: str = "alice", **claims) -> str:
    """Returns a token that is valid for an hour."""
    return sign({"sub": sub, "exp": int(time.time()) + 3600, **claims})


PUBLISHER = {"publish": True}


def until(condition, what: str, deadline: float = DEADLINE):
    """Waits for a condition, which is checked every 5 ms. `what` describes it in the failure message."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"timed out after {deadline} s: {what}")


class Response:
    """An HTTP response."""

    def __init__(self, status: int, headers, text: str):
        self.status, self.headers, self.text = status, headers, text

    def json(self):
        return json.loads(self.text)


class Hub:
    """A running hub."""

    def __init__(self, directory: Path, **settings: str):
        self.directory, self.settings = directory, settings
        self.start("127.0.0.1:0")

    def start(self, listen: str) -> None:
        # Its own environment and directory, so that no `.env`, fanfare.toml or setting of the developer is read.
        # Rejections are not delayed, because many tests cause some. The delay has its own tests.
        settings = {"FANFARE_REFUSAL_DELAY": "0", **self.settings}
        environment = {"PATH": os.environ["PATH"], "SECRET_KEY": SECRET, **settings}
        self.output: list[str] = []
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "--listen", listen],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()
        self.address = until(self._address, "the address on the program's output")
        until(self._ready, "the program to be ready")

    def _read(self, stream) -> None:
        with stream:
            for line in stream:
                self.output.append(line)

    def _address(self) -> str | None:
        text = "".join(self.output)
        assert self.process.poll() is None, f"the program exited:\n{text}"
        found = re.search(r"https?://([\w.\-]+:\d+)", text)
        return found and found[1]

    def _ready(self) -> bool:
        try:
            return self.get("/health/ready").status == 200
        except urllib.error.URLError:
            return False

    def kill(self) -> None:
        """Kills the hub (SIGKILL), without a graceful shutdown."""
        self.process.kill()
        self.process.wait()
        self.reader.join()

    def halt(self) -> None:
        """Stops the hub (SIGSTOP): it responds to nothing, and its connections stay open."""
        self.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self.process.pid}/stat")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "the program to stop")

    def restart(self) -> None:
        self.kill()
        address = self.address

        def again() -> bool:
            try:
                self.start(address)
            except AssertionError:
                # An outgoing connection of another process may use the port for a moment.
                if "in use" not in "".join(self.output):
                    raise
                return False
            return True

        until(again, f"the program to listen on {address} again")

    # HTTP

    def request(self, method: str, path: str, body=None, bearer: str | None = None, **headers: str) -> Response:
        data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        request = urllib.request.Request(f"http://{self.address}{path}", data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if bearer is not None:
            request.add_header("Authorization", f"Bearer {bearer}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as response:
                return Response(response.status, response.headers, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, error.headers, error.read().decode())

    def get(self, path: str, bearer: str | None = None) -> Response:
        return self.request("GET", path, bearer=bearer)

    def post(self, path: str, body=None) -> Response:
        """Posts with a token that may publish."""
        return self.request("POST", path, body, bearer=token("publisher", **PUBLISHER))

    def publish(self, event_id: str, audience="everyone", **fields) -> dict:
        response = self.post("/events", {"type": "note", "event_id": event_id, "audience": audience, **fields})
        assert response.status in (200, 201), f"{response.status} {response.text}"
        return response.json()

    def publish_many(self, event_ids) -> None:
        events = [{"type": "note", "event_id": event_id, "audience": "everyone"} for event_id in event_ids]
        response = self.post("/events/batch", {"events": events})
        assert response.status == 200, response.text

    # WebSocket

    def url(self, **query: str) -> str:
        return f"ws://{self.address}/ws" + (f"?{urllib.parse.urlencode(query)}" if query else "")

    @contextmanager
    def client(self, sub: str = "alice", claims: dict | None = None, **query: str):
        """A client that has received its first ack."""
        with Client(self.url(token=token(sub, **(claims or {})), **query)) as client:
            client.ack = client.next()
            assert client.ack["type"] == "ack", client.ack
            yield client


class Client:
    """A client that sends nothing by itself, except for the frames that RFC 6455 requires."""

    def __init__(self, url: str, **options):
        # The pings of the library are disabled, because they would keep a silent client alive.
        options = {"ping_interval": None, "proxy": None, "compression": None, "close_timeout": 2, **options}
        self.opened = ExitStack()
        self.socket = self.opened.enter_context(connect(url, open_timeout=DEADLINE, **options))
        self.ack: dict = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.opened.close()

    @property
    def id(self) -> str:
        return self.ack["connection_id"]

    def send(self, message) -> None:
        self.socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    def next(self, timeout: float = DEADLINE) -> dict:
        """Returns the next frame."""
        return json.loads(self.socket.recv(timeout))

    def next_of(self, *types: str) -> dict:
        """Returns the next frame of one of these types, and skips the frames before it."""
        end = time.monotonic() + DEADLINE
        while (frame := self.next(max(0.0, end - time.monotonic())))["type"] not in types:
            pass
        return frame

    def until_event(self, event_id: str) -> list[dict]:
        """Returns all frames up to and including an event, without pings."""
        frames = []
        end = time.monotonic() + DEADLINE
        while not frames or frames[-1]["event_id"] != event_id or frames[-1]["type"] in CONTROL:
            frame = self.next(max(0.0, end - time.monotonic()))
            if frame["type"] != "ping":
                frames.append(frame)
        return frames

    def ids_until(self, event_id: str) -> list[str]:
        """Returns the IDs of the events up to and including one. No other frames except for pings may arrive."""
        frames = self.until_event(event_id)
        assert all(frame["type"] not in CONTROL for frame in frames), frames
        return [frame["event_id"] for frame in frames]

    def closed(self, timeout: float = DEADLINE) -> tuple[int, str]:
        """Waits for the hub to close the connection, and returns the code and the reason."""
        end = time.monotonic() + timeout
        try:
            while True:
                self.socket.recv(max(0.0, end - time.monotonic()))
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, f"the connection was lost without a close frame: {closed}"
            return closed.rcvd.code, closed.rcvd.reason
