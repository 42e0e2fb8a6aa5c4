"""A Redis server for a test, on a free port."""

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
    """Returns a free port below the range of ports for outgoing connections."""
    while True:
        with socket.socket() as free, suppress(OSError):
            port = random.randrange(29_600, 32_000)
            free.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """Runs until `kill`. `start` starts it again with its data."""

    def __init__(self, directory: Path, *options: str):
        self.directory, self.options = directory, options
        self.process: subprocess.Popen | None = None
        deadline = time.monotonic() + DEADLINE
        while not self._launch(free_port()):
            assert time.monotonic() < deadline, "found no free port for redis-server"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
        return ["redis-server", *options, *self.options]

    def start(self) -> None:
        assert self._launch(self.port), "failed to start redis-server"

    def _launch(self, port: int) -> bool:
        """Starts the server. Returns False if it exits, for example because another process uses the port."""
        self.port = port
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command(), cwd=self.directory, **quiet)
        deadline = time.monotonic() + DEADLINE
        while not self._answers():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError("redis-server does not respond")
            time.sleep(0.02)
        return True

    def _answers(self) -> bool:
        """Returns whether this process, and not another server, responds on the port."""
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return client.info("server")["process_id"] == self.process.pid
        except redis.RedisError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
