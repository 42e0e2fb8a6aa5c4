"""A publisher of the Python package in several processes, event loops and threads."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import warnings

import pytest
from fanfare_publisher import AsyncPublisher, Publisher, WSMessage
from hub import Hub

PROCESSES, EVENTS = 4, 20

# A server that forks its workers, like Celery and gunicorn: the publisher is created and used before the fork.
FORKING = r"""
import asyncio, json, os, sys, threading
from fanfare_publisher import AsyncPublisher, Publisher, WSMessage

way, kind, processes, events = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
publisher = (AsyncPublisher if kind == "async" else Publisher)(**way, patience=30)

def publish(messages):
    if kind == "async":
        async def run():
            return [await publisher.publish(message, "everyone") for message in messages]
        published = asyncio.run(run())
    else:
        published = [publisher.publish(message, "everyone") for message in messages]
    for message, one in zip(messages, published):
        # A single write, so that lines of several processes do not mix.
        os.write(1, (json.dumps([message.event_id, one.event_id, one.sequence, one.duplicate]) + "\n").encode())

def some(name, count):
    return [WSMessage(type="note", event_id=f"{kind}-{os.getpid()}-{name}-{n}") for n in range(count)]

publish(some("before", 2))
if kind == "locked":
    # A thread of the parent is opening a connection at the moment of the fork.
    publisher._process.lock.acquire()
children = []
for _ in range(processes):
    child = os.fork()
    if not child:
        try:
            publish(some("child", events))
            if kind == "sync":
                publisher.close()
                publish(some("closed", 2))
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    children.append(child)
if kind == "locked":
    publisher._process.lock.release()
publish(some("parent", events))
failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
publish(some("after", 2))
sys.exit(failed)
"""


def in_log(node: Hub, event_id: str) -> int:
    """Returns the sequence of an event in the log, by publishing it again."""
    answer = node.post("/events", {"type": "note", "event_id": event_id, "audience": "everyone"}).json()
    assert answer["duplicate"], f"{event_id} was reported as published, but is not in the log"
    return int(answer["position"].rsplit("-", 1)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("kind", ["sync", "async", "locked"])
def test_after_a_fork_each_process_receives_its_own_responses(node, way, kind):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, json.dumps(way), kind]
    run = subprocess.run([*command, str(PROCESSES), str(EVENTS)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    expected = 4 + EVENTS + PROCESSES * (EVENTS + (2 if kind == "sync" else 0))
    assert len(answers) == expected
    for sent, answered, sequence, duplicate in answers:
        assert (sent, duplicate) == (answered, False)
        assert in_log(node, sent) == sequence


@pytest.fixture
def sockets_may_be_left():
    """Ignores warnings of tests that leave connections to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def test_one_publisher_serves_one_event_loop_after_another(way, sockets_may_be_left):
    publisher = AsyncPublisher(**way)
    published = [asyncio.run(publisher.publish(WSMessage(type="note"), "everyone")) for _ in range(4)]
    assert [one.sequence for one in published] == sorted(one.sequence for one in published)
    asyncio.run(publisher.close())


def test_one_publisher_serves_concurrent_event_loops(way):
    publisher = AsyncPublisher(**way, patience=30)
    sequences: list[int] = []

    async def run() -> None:
        for _ in range(30):
            sequences.append((await publisher.publish(WSMessage(type="note"), "everyone")).sequence)
        await publisher.close()

    threads = [threading.Thread(target=lambda: asyncio.run(run())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(sequences)) == 120


def test_threads_share_a_publisher_that_is_closed_repeatedly(way, sockets_may_be_left):
    publisher = Publisher(**way, patience=30)
    ended = threading.Event()
    answers: list[tuple[str, str]] = []

    def run() -> None:
        for _ in range(40):
            message = WSMessage(type="note")
            answers.append((message.event_id, publisher.publish(message, "everyone").event_id))

    def close() -> None:
        while not ended.wait(0.02):
            publisher.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    closing = threading.Thread(target=close)
    for thread in [*threads, closing]:
        thread.start()
    for thread in threads:
        thread.join(60)
    ended.set()
    closing.join(60)
    publisher.close()
    assert len(answers) == 160 and all(sent == answered for sent, answered in answers)


def test_a_cancelled_publish_leaves_the_publisher_usable(way):
    async def run() -> None:
        async with AsyncPublisher(**way, patience=30) as publisher:
            for n in range(40):
                task = asyncio.ensure_future(publisher.publish(WSMessage(type="note"), "everyone"))
                for _ in range(n % 8):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                message = WSMessage(type="note")
                published = await publisher.publish(message, "everyone")
                assert (published.event_id, published.duplicate) == (message.event_id, False)

    asyncio.run(run())


def test_a_cancelled_publish_does_not_cancel_its_request():
    """A request that is cancelled while it waits for a connection would occupy a slot of httpx's pool forever."""
    outcomes = []

    async def run():
        begun, answered = asyncio.Event(), asyncio.Event()

        class Client:
            async def post(self, *_: object, **options: object):
                begun.set()
                try:
                    await answered.wait()
                except BaseException as error:
                    outcomes.append(type(error))
                    raise
                outcomes.append("ended")

        publisher = AsyncPublisher("http://127.0.0.1:1", token="ffk_x")
        publisher._connect = lambda _: Client()
        publishing = asyncio.ensure_future(publisher.publish_broadcast(WSMessage(type="note")))
        await begun.wait()
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        answered.set()
        while not outcomes:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert outcomes == ["ended"]
