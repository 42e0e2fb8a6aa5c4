"""Resuming: every event once, or a gap."""

import threading

import pytest
from hub import until


def test_the_id_of_any_frame_is_a_cursor(hub_with):
    hub = hub_with(heartbeat_interval="1s", heartbeat_timeout="30s")
    with hub.client() as client:
        marks = {"ack": client.ack["event_id"]}
        hub.publish("one")
        marks["event"] = client.next_of("note")["event_id"]
        assert marks["event"] == "one"
        hub.publish("two")
        client.next_of("note")
        marks["ping"] = client.next_of("ping")["event_id"]
        client.send({"type": "ping"})
        marks["pong"] = client.next_of("pong")["event_id"]
        hub.publish("three")
        client.next_of("note")
        client.send({"type": "nonsense"})
        marks["error"] = client.next_of("error")["event_id"]
        name = client.id
    hub.publish("four")
    missed = {
        "ack": ["one", "two", "three", "four"], "event": ["two", "three", "four"],
        "ping": ["three", "four"], "pong": ["three", "four"], "error": ["four"],
    }  # fmt: skip
    for frame, expected in missed.items():
        with hub.client(connection_id=name, last_event_id=marks[frame]) as client:
            assert client.ack["ack_event_id"] == marks[frame], frame
            assert (client.ack["resumed"], client.ack["replayed"]) == (True, len(expected)), frame
            assert client.ids_until("four") == expected, frame


def test_live_events_follow_replayed_ones_without_a_break(hub):
    count, stop = 0, threading.Event()

    def publish():
        nonlocal count
        while not stop.is_set():
            hub.publish(f"join-{count}")
            count += 1

    with hub.client() as client:
        name, cursor = client.id, client.ack["event_id"]
    publisher = threading.Thread(target=publish)
    publisher.start()
    got: list[str] = []
    try:
        for _ in range(20):
            until(lambda: count > len(got) + 5, "more events")
            with hub.client(connection_id=name, last_event_id=cursor) as client:
                assert client.ack["resumed"] and client.ack["connection_id"] == name
                for _ in range(10):
                    got.append(client.next_of("note")["event_id"])
                cursor = got[-1]
    finally:
        stop.set()
        publisher.join()
    with hub.client(connection_id=name, last_event_id=cursor) as client:
        if got[-1] != f"join-{count - 1}":
            got += client.ids_until(f"join-{count - 1}")
    assert got == [f"join-{n}" for n in range(count)]


def test_events_for_a_disconnected_connection_are_replayed(hub):
    with hub.client("ann") as client:
        name, cursor = client.id, client.ack["event_id"]
    hub.publish("away-mine", {"connection": name})
    hub.publish("away-user", {"user": "ann"})
    hub.publish("away-other", {"user": "bob"})
    hub.publish("away-end")
    with hub.client("ann", connection_id=name, last_event_id=cursor) as client:
        assert client.id == name
        assert client.ids_until("away-end") == ["away-mine", "away-user", "away-end"]


def test_topics_are_replayed_too(hub):
    claims = {"topics": ["project:*"]}
    with hub.client(claims=claims, topics="project:1") as client:
        cursor = client.ack["event_id"]
    hub.publish("replay-topic", {"topic": "project:1"})
    hub.publish("replay-other", {"topic": "project:2"})
    hub.publish("replay-end")
    with hub.client(claims=claims, topics="project:1", last_event_id=cursor) as client:
        assert client.ack["replayed"] == 2
        assert client.ids_until("replay-end") == ["replay-topic", "replay-end"]


# attack: reconnecting with another user's connection_id => the client receives a new connection_id
@pytest.mark.parametrize("wanted", ["of another user", "of nobody", "no uuid"])
def test_a_connection_id_of_another_user_is_replaced(hub, wanted):
    with hub.client("ann") as ann:
        name = {"of another user": ann.id, "of nobody": "01234567-89ab-8def-8123-456789abcdef", "no uuid": "x"}[wanted]
        with hub.client("eve", connection_id=name) as eve:
            assert eve.id != name
            hub.publish(f"secret {wanted}", {"connection": ann.id})
            hub.publish(f"end {wanted}")
            assert eve.ids_until(f"end {wanted}") == [f"end {wanted}"]
            assert ann.ids_until(f"end {wanted}") == [f"secret {wanted}", f"end {wanted}"]


def test_a_newer_socket_takes_over_and_the_older_one_is_closed(hub):
    with hub.client("ann") as older:
        with hub.client("ann", connection_id=older.id) as newer:
            assert newer.id == older.id
            code, reason = older.closed()
            assert code == 4001
            assert reason
            hub.publish("taken-over", {"connection": newer.id})
            assert newer.ids_until("taken-over") == ["taken-over"]


def test_a_client_that_resumes_behind_the_window_receives_a_gap(hub_with):
    hub = hub_with(window_events=10)
    with hub.client() as client:
        cursor = client.ack["event_id"]
    hub.publish_many(f"n-{n}" for n in range(100))
    with hub.client(last_event_id=cursor) as client:
        assert (client.ack["resumed"], client.ack["event_id"]) == (False, cursor)
        gap = client.next()
        assert list(gap) == ["type", "event_id", "timestamp", "reason", "missed"]
        assert (gap["type"], gap["reason"]) == ("gap", "expired")
        got = client.ids_until("n-99")
        assert gap["missed"] == 100 - len(got)
        assert got == [f"n-{n}" for n in range(gap["missed"], 100)]
        assert len(got) >= 10
    with hub.client(last_event_id=gap["event_id"]) as client:
        assert client.ack["resumed"] is True, "the ID of the gap is a cursor"
        assert client.ids_until("n-99") == got
    with hub.client(last_event_id="n-0") as client:
        assert client.ack["event_id"] == "n-0", "a client that is disconnected before the gap receives it again"
        gap = client.next()
        assert (gap["type"], gap["reason"]) == ("gap", "expired"), "the event was evicted"


def test_a_cursor_of_an_earlier_log_leads_to_a_gap(hub_with):
    hub = hub_with()
    hub.publish("old")
    with hub.client() as client:
        position, name = client.ack["event_id"], client.id
    hub.restart()
    for cursor in [position, "old", "unknown"]:
        with hub.client(connection_id=name, last_event_id=cursor) as client:
            assert client.id == name, "with the same secret a connection_id survives a restart"
            assert (client.ack["resumed"], client.ack["ack_event_id"]) == (False, cursor)
            assert client.ack["event_id"] == cursor, "a client that is disconnected before the gap receives it again"
            gap = client.next()
            assert (gap["type"], gap["reason"]) == ("gap", "reset"), cursor
            assert "missed" not in gap
            hub.publish(f"new after {cursor}")
            assert client.ids_until(f"new after {cursor}")[-1] == f"new after {cursor}"


def test_without_a_cursor_only_new_events_are_delivered(hub):
    hub.publish("history")
    with hub.client() as client:
        hub.publish("present")
        assert client.ids_until("present") == ["present"]
