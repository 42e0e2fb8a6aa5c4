"""A client that stops reading: it delays no other client, and receives all events or a gap when it reads again."""

import json
import socket

import pytest
from hub import DEADLINE, Client, token, until

COUNT = 4000
FILLING = "x" * 2000


def stalled_client(hub) -> Client:
    """Returns a client with a small receive buffer. After its ack it reads only what the library reads ahead."""
    host, port = hub.address.split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    client = Client(hub.url(token=token("slow")), sock=raw, max_queue=1)
    client.ack = client.next()
    return client


def storm(hub, first: int) -> None:
    note = {"type": "note", "audience": "everyone", "data": {"x": FILLING}}
    events = [{**note, "event_id": f"n-{n}"} for n in range(first, first + 500)]
    answer = hub.post("/events/batch", {"events": events})
    assert answer.status == 200, answer.text


# attack: a client that does not read => delays no other client; it receives all events or a gap
@pytest.mark.parametrize("window", [100_000, 1000])
def test_a_slow_client_delays_no_other_client_and_receives_all_events_or_a_gap(hub_with, window):
    hub = hub_with(window_events=window, connects_per_second_per_address=0)
    with stalled_client(hub) as slow, hub.client("quick") as quick:
        for first in range(0, COUNT, 500):
            storm(hub, first)
            # Other clients receive events while one is stalled.
            assert quick.ids_until(f"n-{first + 499}") == [f"n-{n}" for n in range(first, first + 500)]
        with hub.client("late"):
            pass

        got, gaps = read_all(slow, f"n-{COUNT - 1}")
        if window >= COUNT:
            assert gaps == []
            assert got == list(range(COUNT))
        else:
            assert len(gaps) == 1, "8 MB exceed the socket buffers, so events were evicted"
            reached, missed, reason = gaps[0]
            assert reason == "expired"
            assert missed > 0
            expected = [*range(reached), *range(reached + missed, COUNT)]
            assert got == expected, "the gap covers exactly the missing events"
        until(lambda: hub.get("/ws/health").json()["connections"]["local"] == 2, "both clients to be connected")


def read_all(client: Client, last: str):
    """Returns the numbers of all events up to the last, and the gaps with the number of events before them."""
    got, gaps = [], []
    while not got or f"n-{got[-1]}" != last:
        frame = json.loads(client.socket.recv(DEADLINE))
        if frame["type"] == "note":
            got.append(int(frame["event_id"][2:]))
        elif frame["type"] == "gap":
            gaps.append((len(got), frame["missed"], frame["reason"]))
    return got, gaps
