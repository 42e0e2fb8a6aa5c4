"""A Redis of a test's own, on a free port."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import redis

DEADLINE = 90


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        with socket.socket() as free, suppress(OSError):
            port = random.randrange(29_600, 32_000)
            free.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """Ends with `kill`; comes back with its data after `restart`."""

    def __init__(self, directory: Path, *options: str):
        self.directory, self.options = directory, options
        self.process: subprocess.Popen | None = None
        deadline = time.monotonic() + DEADLINE
        while not self._launch(free_port()):
            assert time.monotonic() < deadline, "redis-server finds no free port"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
        return ["redis-server", *options, *self.options]

    def start(self) -> None:
        assert self._launch(self.port), "redis-server does not start"

    def _launch(self, port: int) -> bool:
        """Starts it. False: it ended, as when somebody else has the port by now."""
        self.port = port
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command(), cwd=self.directory, **quiet)
        deadline = time.monotonic() + DEADLINE
        while not self._answers():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError("redis-server does not answer")
            time.sleep(0.02)
        return True

    def _answers(self) -> bool:
        """Whether this very process answers on its port, and not another server."""
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return client.info("server")["process_id"] == self.process.pid
        except redis.RedisError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
