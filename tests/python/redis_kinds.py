"""A Redis Cluster and a Redis with Sentinel for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import redis
from hub import until
from redis_server import RedisServer, free_port

NAME = "hub"


class Cluster:
    """A Redis Cluster of three masters."""

    def __init__(self, directory: Path):
        self.nodes: list[RedisServer] = []
        try:
            self._start(directory)
        except BaseException:
            self.end()
            raise

    def _start(self, directory: Path) -> None:
        for n in range(3):
            self.nodes.append(RedisServer(_folder(directory, f"node-{n}"), "--cluster-enabled", "yes"))
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        self.url = f"redis+cluster://{','.join(addresses)}"
        command = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
        created = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert created.returncode == 0, created.stdout + created.stderr
        until(lambda: all(self._serves(node) for node in self.nodes), "the Cluster to serve")

    @staticmethod
    def _serves(node: RedisServer) -> bool:
        with redis.Redis(port=node.port) as client:
            return client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"

    def end(self) -> None:
        for node in self.nodes:
            node.kill()


class Sentinels:
    """A master with a replica, and three sentinels that watch them."""

    def __init__(self, directory: Path):
        self.servers: list[RedisServer] = []
        self.sentinels: list[_Sentinel] = []
        try:
            self._start(directory)
        except BaseException:
            self.end()
            raise

    def _start(self, directory: Path) -> None:
        master = RedisServer(_folder(directory, "master"))
        self.servers.append(master)
        follow = ("--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
        self.servers.append(RedisServer(_folder(directory, "replica"), *follow))
        for n in range(3):
            self.sentinels.append(_Sentinel(_folder(directory, f"sentinel-{n}"), master.port))
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{NAME}"
        until(lambda: all(self._is_settled(one) for one in self.sentinels), "the sentinels to discover all servers")
        until(self._is_replicated, "the replica to connect to the master")

    def master(self) -> RedisServer:
        """Returns the master that the first sentinel reports."""
        with self.sentinels[0].client() as client:
            _, port = client.sentinel_get_master_addr_by_name(NAME)
        return next(server for server in self.servers if server.port == port)

    @staticmethod
    def _is_settled(sentinel: _Sentinel) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(NAME)
        return state["num-other-sentinels"] == 2 and state["num-slaves"] == 1 and state["flags"] == "master"

    def _is_replicated(self) -> bool:
        with redis.Redis(port=self.servers[1].port) as client:
            return client.info("replication")["master_link_status"] == "up"

    def end(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.kill()


class _Sentinel(RedisServer):
    """A sentinel. It has no state of an earlier run, because its configuration is written at each start."""

    def __init__(self, directory: Path, master: int):
        self.master = master
        super().__init__(directory)

    def command(self) -> list[str]:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"sentinel monitor {NAME} 127.0.0.1 {self.master} 2",
            f"sentinel down-after-milliseconds {NAME} 1000",
            f"sentinel failover-timeout {NAME} 5000",
        ]
        file = self.directory / "sentinel.conf"
        file.write_text("\n".join(lines) + "\n")
        return ["redis-server", str(file), "--sentinel"]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)


def _folder(directory: Path, name: str) -> Path:
    folder = directory / name
    folder.mkdir()
    return folder
