"""The Python package against running hubs, over HTTP and Redis, and against the wire vectors."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from fanfare_publisher import (
    AgentActivityUpdate,
    AsyncPublisher,
    CalendarEventCreated,
    EventRejected,
    Gap,
    InvalidEvent,
    Listener,
    MessageType,
    NotAuthorized,
    Published,
    Publisher,
    PublishError,
    RedisPubSub,
    Refused,
    SyncListener,
    TaskStatusUpdate,
    WSMessage,
)
from fanfare_publisher import client as listening
from hub import DEADLINE, PUBLISHER, ROOT, Hub, token, until
from redis_server import RedisServer

CLASSES = {one.__name__: one for one in (TaskStatusUpdate, AgentActivityUpdate, CalendarEventCreated, WSMessage)}
KEY = token("publisher", **PUBLISHER)


def vectors(name: str) -> list[dict]:
    cases = json.loads((ROOT / f"tests/wire/{name}.json").read_text())["cases"]
    assert len(cases) > 5
    return cases


# Wire vectors


@pytest.mark.parametrize("case", vectors("closes"), ids=lambda case: f"{case['code']} {case['reason']}")
def test_closes(case):
    assert listening.verdict(case["code"], case["reason"]) == case["then"]


@pytest.mark.parametrize("case", vectors("frames"), ids=lambda case: case["text"][:40])
def test_frames(case):
    expected = case["client"]
    client = listening.Client("ws://hub/ws", [], renews=True)
    client.receive(vectors("frames")[0]["text"])
    received = client.receive(case["text"])
    assert client.last_event_id == json.loads(case["text"])["event_id"]
    answer = client.auth("a newer token") if received.wants_token else received.answer
    assert (json.loads(answer) if answer else None) == expected.get("sends")
    gap = expected.get("gap")
    assert received.notification == (Gap(gap["reason"], gap.get("missed")) if gap else None)
    problem, said = received.problem, case["say"]
    assert (problem and {"error": problem.error, "message": problem.message}) == expected.get("problem")
    assert problem is None or (problem.topic, problem.ack_event_id) == (said.get("topic"), said.get("ack_event_id"))
    if "returns_after_ms" in expected:
        assert client.closed(1012, "") >= expected["returns_after_ms"] / 1_000


TYPED = [case for case in vectors("events") if "class" in case]


@pytest.mark.parametrize("case", TYPED, ids=lambda case: case["class"])
def test_events(case):
    expected = json.loads(case["published"])
    fields = {name: value for name, value in expected.items() if name != "type" or case["class"] == "WSMessage"}
    message = CLASSES[case["class"]](**fields)
    assert json.loads(message.model_dump_json()) == expected
    client = listening.Client("ws://hub/ws", [])
    assert client.receive(case["delivered"]).notification.model_dump(mode="json") == expected


@pytest.mark.parametrize("case", vectors("cursors"), ids=lambda case: case["frame"][:40])
def test_cursors(case):
    client = listening.Client("ws://hub/ws", [])
    received = client.receive(case["frame"])
    assert client.last_event_id == case["cursor"]
    whole = json.loads(case["frame"])
    assert whole["type"] == "ping" or received.notification.model_dump(mode="json", exclude_unset=True) == whole


def test_a_message_has_the_fields_of_the_fastapi_hub():
    message = TaskStatusUpdate(data={"task_id": "7"})
    assert message.type == MessageType.TASK_STATUS_UPDATE.value == "task_status_update"
    assert re.fullmatch(r"[0-9a-f-]{36}", message.event_id)
    assert set(message.model_dump()) == {"type", "event_id", "timestamp", "data"}
    with pytest.raises(ValueError):
        TaskStatusUpdate()


# Publishing


def test_an_event_reaches_exactly_its_audience_and_its_sequence_is_returned(node, way):
    with Publisher(**way) as publisher:
        with node.client("ann", {"topics": ["project:*"]}, topics="project:7") as ann, node.client("bob") as bob:
            sent = [
                publisher.publish_broadcast(TaskStatusUpdate(data={"task_id": "1", "status": "running"})),
                publisher.publish_to_user("ann", AgentActivityUpdate(data={"agent_id": "a"})),
                publisher.publish_to_connection(bob.id, CalendarEventCreated(data={"title": "Review"})),
                publisher.publish_to_topic("project:7", WSMessage(type="note", data={"text": "hi"}, more=[1])),
                publisher.publish_broadcast(WSMessage(type="last")),
            ]
            ids = [published.event_id for published in sent]
            assert ann.ids_until(ids[4]) == [ids[0], ids[1], ids[3], ids[4]]
            assert bob.ids_until(ids[4]) == [ids[0], ids[2], ids[4]]
        sequences = [published.sequence for published in sent]
        assert sequences == list(range(sequences[0], sequences[0] + 5)) and not any(one.duplicate for one in sent)


@pytest.mark.parametrize("absent", ["", " ", "null", "undefined", "NaN", "None"])
def test_an_absent_id_is_replaced(absent):
    message = WSMessage(type="note", event_id=absent)
    assert len(message.event_id) == 36 and message.event_id != WSMessage(type="note", event_id=absent).event_id


def test_an_id_that_is_too_long_is_rejected_before_it_is_sent(way):
    with Publisher(**way) as publisher:
        publisher.publish_broadcast(WSMessage(type="note", event_id="ü" * 32 + "x" * 64))
        with pytest.raises(InvalidEvent, match="more than 128 bytes"):
            publisher.publish_broadcast(WSMessage(type="note", event_id="ü" * 32 + "x" * 65))


@pytest.mark.parametrize("event_id", [5, None, "", "null"])
def test_an_id_that_was_assigned_later_is_checked_before_it_is_sent(way, event_id):
    message = WSMessage(type="note")
    message.event_id = event_id
    with Publisher(**way) as publisher, pytest.raises(InvalidEvent, match="event_id must be a str"):
        publisher.publish_broadcast(message)


def test_the_index_of_an_error_counts_all_events(way):
    good = [(WSMessage(type="note"), "everyone") for _ in range(600)]
    with Publisher(**way) as publisher, pytest.raises(EventRejected) as caught:
        publisher.publish_many([*good, (WSMessage(type="$sys"), "everyone"), *good[:1]])
    assert caught.value.index == 600
    assert "events[" not in str(caught.value) or "events[600]" in str(caught.value)


def test_a_repeated_event_is_a_duplicate(way):
    message = WSMessage(type="note")
    with Publisher(**way) as publisher:
        first, second = publisher.publish_broadcast(message), publisher.publish_broadcast(message)
    assert (first.event_id, first.sequence) == (second.event_id, second.sequence)
    assert (first.duplicate, second.duplicate) == (False, True)


def test_many_concurrent_publishes_with_asyncio(way, node):
    async def run() -> list[Published]:
        async with AsyncPublisher(**way) as publisher:
            return await asyncio.gather(*(publisher.publish_to_user("ann", WSMessage(type="note")) for _ in range(50)))

    with node.client("ann") as ann:
        published = sorted(asyncio.run(run()), key=lambda one: one.sequence)
        ids = [one.event_id for one in published]
        assert ann.ids_until(ids[-1]) == ids


def test_the_object_of_the_fastapi_hub_reads_the_environment(way, node, monkeypatch):
    over_redis = way["url"].startswith("redis")
    for name, value in (
        {"REDIS_URL": way["url"]} if over_redis else {"FANFARE_URL": way["url"], "FANFARE_TOKEN": way["token"]}
    ).items():
        monkeypatch.setenv(name, value)

    async def run() -> Published:
        pubsub = RedisPubSub()
        await pubsub.initialize()
        try:
            return await pubsub.publish_to_user("ann", TaskStatusUpdate(data={"task_id": "7", "status": "completed"}))
        finally:
            await pubsub.close()

    with node.client("ann") as ann:
        assert ann.ids_until(asyncio.run(run()).event_id)


def test_without_an_address_the_error_names_the_variables(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("FANFARE_URL", raising=False)
    with pytest.raises(PublishError, match="REDIS_URL"):
        asyncio.run(RedisPubSub().publish_broadcast(WSMessage(type="note")))


def test_a_rejection_has_its_reason_and_is_not_retried(node):
    url = f"http://{node.address}"
    with pytest.raises(EventRejected, match="reserved") as refused, Publisher(url, token=KEY) as publisher:
        publisher.publish_broadcast(WSMessage(type="$sys"))
    assert (refused.value.status, refused.value.code, refused.value.may_be_published) == (422, "invalid", False)
    with pytest.raises(NotAuthorized) as refused, Publisher(url, token=token("reader")) as publisher:
        publisher.publish_broadcast(WSMessage(type="note"))
    assert (refused.value.status, refused.value.code) == (403, "forbidden")


def test_without_a_hub_a_publish_fails_within_its_deadline(tmp_path):
    server = RedisServer(tmp_path)
    try:
        with Publisher(server.url, patience=0.5) as publisher:
            with pytest.raises(PublishError, match="no hub appended the event to the log") as failed:
                publisher.publish_broadcast(WSMessage(type="note"))
            assert failed.value.may_be_published
    finally:
        server.kill()
    with Publisher(server.url, patience=0.5) as publisher:
        with pytest.raises(PublishError, match="Redis can't be reached"):
            publisher.publish_broadcast(WSMessage(type="note"))
    with Publisher("http://127.0.0.1:1", token=KEY, patience=0.5) as publisher:
        with pytest.raises(PublishError, match="the hub at http:.* can't be reached"):
            publisher.publish_broadcast(WSMessage(type="note"))


@pytest.mark.parametrize("way", ["http", "redis"])
def test_during_a_restart_of_redis_each_event_is_published_once(way, tmp_path):
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    hub = Hub(tmp_path, REDIS_URL=server.url)
    address = {"url": f"http://{hub.address}", "token": KEY} if way == "http" else {"url": server.url}
    sequences: list[int] = []
    try:
        with SyncListener(f"http://{hub.address}", token("ann"), types=["note"]) as events:
            events.wait_until_live()
            with Publisher(**address, patience=90) as publisher:

                def publish() -> None:
                    for n in range(400):
                        sequences.append(publisher.publish_broadcast(WSMessage(type="note", data={"n": n})).sequence)

                thread = threading.Thread(target=publish)
                thread.start()
                until(lambda: len(sequences) > 100, "the first hundred events")
                server.kill()
                server.start()
                thread.join(DEADLINE)
                assert not thread.is_alive() and len(sequences) == 400
            items = [events.next(DEADLINE) for _ in range(400)]
            assert [one.data["n"] for one in items] == list(range(400))
        assert sequences == sorted(set(sequences))
    finally:
        hub.kill()
        server.kill()


# Listening


def test_a_listener_resumes_after_a_restart_of_the_hub(tmp_path):
    hub = Hub(tmp_path)
    try:
        with SyncListener(f"http://{hub.address}", lambda: token("ann", topics=["a"]), topics=["a"]) as events:
            events.wait_until_live()
            hub.publish("e1")
            assert events.next(DEADLINE).event_id == "e1"
            hub.restart()
            hub.publish("e2")
            item = events.next(DEADLINE)
            assert isinstance(item, Gap) and item.reason == "reset", "the log was in memory"
            assert events.next(DEADLINE).event_id == "e2"
    finally:
        hub.kill()


def test_a_rejected_listener_raises_the_reason(hub):
    async def run() -> None:
        async for _ in Listener(f"ws://{hub.address}/ws", "no token"):
            pass

    with pytest.raises(Refused, match="token_invalid") as refused:
        asyncio.run(run())
    assert refused.value.code == 1008


# The example


def test_the_fastapi_example(node, server, tmp_path):
    example = ROOT / "clients/python/examples"
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", "0", "--log-level", "info"]
    environment = {"REDIS_URL": server.url, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=example, env=environment, stdout=output, stderr=output)
    try:
        running = r"running on (http://\S+)"
        base = until(lambda: re.search(running, Path(log).read_text()), "the application")[1]
        with node.client("ann") as ann, httpx.Client(base_url=base) as app:
            task = app.post("/tasks/7/status", json={"status": "running"}).json()
            did = app.post("/users/ann/agents/a/activity", json={"action": "read"}).json()
            made = app.post(f"/calendar/{ann.id}/events", json={"title": "Review"}).json()
            assert ann.ids_until(made["event_id"]) == [task["event_id"], did["event_id"], made["event_id"]]
            assert app.post("/tasks/7/status", json={}).status_code == 422
    finally:
        process.terminate()
        process.wait(DEADLINE)
