"""Servers in place of a hub or a Redis: fixed responses, no responses, and a late clock."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from contextlib import contextmanager, suppress


@contextmanager
def answering(status: int, body: str = "", **headers: str):
    """Starts a server with a fixed response to each POST. Yields its URL, and the bodies that it received."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # noqa: N802
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()


@contextmanager
def silent(first: bytes = b"", *, trickle: bytes = b""):
    """Starts a server that accepts connections, sends `first`, and then sends nothing, or `trickle` every 0.1 s.

    Yields its port.
    """
    stop = threading.Event()
    sockets: list[socket.socket] = []

    def serve(client: socket.socket) -> None:
        try:
            if first or trickle:
                client.recv(65536)
            client.sendall(first)
            while trickle and not stop.wait(0.1):
                client.sendall(trickle)
        except OSError:
            pass

    def accept(listening: socket.socket) -> None:
        while not stop.is_set():
            try:
                client, _ = listening.accept()
            except OSError:
                return
            sockets.append(client)
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            # Wakes the accepting thread.
            listening.shutdown(socket.SHUT_RDWR)
    for client in sockets:
        client.close()


#: The response of Redis to TIME: seconds and microseconds.
_TIME = re.compile(rb"(\*2\r\n\$10\r\n)(\d{10})(\r\n\$\d\r\n\d{1,6}\r\n)")


@contextmanager
def late_clock(port: int, seconds: int):
    """Starts a proxy to the Redis on a port, whose clock appears `seconds` late. Yields the port of the proxy."""

    def later(answer: bytes) -> bytes:
        return _TIME.sub(lambda found: found[1] + b"%010d" % (int(found[2]) - seconds) + found[3], answer)

    def pump(source: socket.socket, target: socket.socket, change) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                target.sendall(change(data))
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client, later), daemon=True)
            back.start()
            pump(client, server, bytes)
            back.join()

    def accept(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            # Wakes the accepting thread.
            listening.shutdown(socket.SHUT_RDWR)
