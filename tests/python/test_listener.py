"""The listeners of the Python package against running hubs: tokens, topics, cursors, and errors."""

import asyncio
import gc
import json
import logging
import pickle
import threading
import time
import warnings

import pytest
from fanfare_publisher import Gap, HubError, Listener, Refused, SyncListener, TopicRefused
from fanfare_publisher.client import Client
from hub import DEADLINE, Hub, token, until

GENEROUS = 60


def first_event(listener: Listener, hub: Hub, event_id: str):
    """Publishes an event once the listener is live, and returns the first event that it yields."""

    async def run():
        async def publish() -> None:
            await listener.live.wait()
            await asyncio.to_thread(hub.publish, event_id)

        publishing = asyncio.ensure_future(publish())
        try:
            async for item in listener:
                return item
        finally:
            await publishing

    return asyncio.run(asyncio.wait_for(run(), GENEROUS))


# Tokens


def test_a_token_function_may_be_async_and_receives_the_reason(hub):
    reasons = []

    async def give(reason):
        await asyncio.sleep(0)
        reasons.append(reason)
        return token("ann")

    assert first_event(Listener(hub.url(), give), hub, "async-token").event_id == "async-token"
    assert reasons == ["connect"]


def test_a_function_with_another_argument_does_not_receive_the_reason(hub):
    given = []
    listener = Listener(hub.url(), lambda user="ann": given.append(user) or token(user))
    assert first_event(listener, hub, "own-argument").event_id == "own-argument"
    assert given == ["ann"]


async def _never():
    await asyncio.sleep(3600)


FAILURES = {
    "raises": lambda: 1 / 0,
    "raises StopIteration": lambda: next(iter(())),
    "is async and never returns": _never,
    "blocks for ever": lambda: threading.Event().wait(3600),
    "returns None": lambda: None,
    "returns an empty text": lambda: "",
    "returns a page": lambda: "<html>secret-session</html>",
    "returns an object": lambda: {"token": "secret-session"},
    "returns bytes": lambda: b"secret-session",
}


# attack: a token endpoint hangs, raises, or returns a login page => the listener retries and logs no content
@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES.keys())
def test_a_token_function_that_fails_is_called_again(hub, fails, caplog):
    calls = []

    def give():
        calls.append(1)
        return fails() if len(calls) == 1 else token("ann")

    listener = Listener(hub.url(), give, token_timeout=0.3)
    with caplog.at_level(logging.DEBUG):
        assert first_event(listener, hub, f"after-{len(calls)}-{id(fails)}")
    assert len(calls) == 2
    assert any("the token function" in record.getMessage() for record in caplog.records)
    assert "secret-session" not in caplog.text and token("ann")[:40] not in caplog.text


def test_after_a_rejection_the_function_is_called_for_another_token(hub):
    reasons = []

    def give(reason):
        reasons.append(reason)
        return token("ann", exp=int(time.time()) - 60) if reason == "connect" else token("ann")

    assert first_event(Listener(hub.url(), give), hub, "after-refusal").event_id == "after-refusal"
    assert reasons == ["connect", "refused"]


def test_a_second_rejection_in_a_row_ends_the_listener(hub):
    reasons = []

    def give(reason):
        reasons.append(reason)
        return "a.b.c"

    with pytest.raises(Refused, match="token_invalid"):
        first_event_never(Listener(hub.url(), give))
    assert reasons == ["connect", "refused"]


def first_event_never(listener: Listener) -> None:
    async def run() -> None:
        async for item in listener:
            raise AssertionError(item)

    asyncio.run(asyncio.wait_for(run(), GENEROUS))


def test_an_expiring_token_is_renewed_on_the_same_connection(hub):
    reasons = []

    def give(reason):
        reasons.append(reason)
        if reasons.count("expiring") == 1 and reason == "expiring":
            raise OSError("the login server is down")
        return token("ann", exp=int(time.time()) + (4 if reason == "connect" and len(reasons) == 1 else 600))

    with SyncListener(hub.url(), give) as events:
        events.wait_until_live(GENEROUS)
        until(lambda: "expiring" in reasons, "the call for a newer token", GENEROUS)
        until(lambda: reasons.count("connect") + reasons.count("refused") == 2, "the next connection", GENEROUS)
        until(lambda: hub.publish("renewed") and True, "a publish")
        assert events.next(GENEROUS).event_id == "renewed"


def test_an_invalid_token_is_rejected_immediately():
    for bad in ("", " ", "a\nb", None, 7):
        with pytest.raises(ValueError, match="token"):
            Listener("ws://hub", bad)


# Topics


# attack: a topic with a comma subscribes to a second topic => rejected before anything is sent
@pytest.mark.parametrize("topic", ["project:7,secret", "", "a b", "project:*", "x" * 129, "a\nb", 7])
def test_an_invalid_topic_is_rejected_before_it_is_sent(topic):
    with pytest.raises(ValueError, match="topic"):
        Listener("ws://hub", "a.b.c", topics=[topic])


def test_topics_in_one_str_are_rejected():
    with pytest.raises(ValueError, match=r"topics=\['project:7'\]"):
        SyncListener("ws://hub", "a.b.c", topics="project:7")


@pytest.mark.parametrize("url", ["hub:8000", "ftp://hub", "ws://", "wss://hub/ws?token=a.b.c"])
def test_an_invalid_url_is_rejected(url):
    with pytest.raises(ValueError, match="URL"):
        Listener(url, "a.b.c")


def test_a_topic_that_the_token_does_not_allow_raises(hub):
    listener = Listener(hub.url(), token("ann", topics=["project:*"]), topics=["project:7", "secret"])
    with pytest.raises(TopicRefused, match="secret") as refused:
        first_event_never(listener)
    assert (refused.value.error, refused.value.topic) == ("forbidden", "secret")


def test_with_on_error_the_listener_continues(hub):
    problems: list[HubError] = []
    options = {"topics": ["secret", "project:7"], "on_error": problems.append}
    with SyncListener(hub.url(), token("ann", topics=["project:*"]), **options) as events:
        events.wait_until_live(GENEROUS)
        hub.publish("allowed", {"topic": "project:7"})
        assert events.next(GENEROUS).event_id == "allowed"
    assert [(one.error, one.topic) for one in problems] == [("forbidden", "secret")]
    assert problems[0].is_about_topic and problems[0].ack_event_id == "initial_connect"


# Events and cursors


def test_events_with_any_data_are_yielded(hub):
    with SyncListener(hub.url(), token("ann")) as events:
        events.wait_until_live(GENEROUS)
        for event_id, data in (("shape-1", 7), ("shape-2", [1]), ("shape-3", None), ("shape-4", {"a": 1})):
            hub.publish(event_id, data=data)
            assert (item := events.next(GENEROUS)).event_id == event_id
            assert item.data == data


def test_the_cursor_stays_before_a_gap_until_it_is_handled(hub_with):
    hub = hub_with(window_events=10)
    with SyncListener(hub.url(), token("ann")) as events:
        events.wait_until_live(GENEROUS)
        hub.publish("e-0")
        first = events.next(GENEROUS)
        assert first.event_id == "e-0"
        saved = {"connection_id": events.connection_id, "last_event_id": events.last_event_id}
        assert saved["last_event_id"] == first.log_position
    hub.publish_many(f"e-{n}" for n in range(1, 30))
    for _ in range(2):
        # The second listener is that of a program that failed while it handled the gap.
        with SyncListener(hub.url(), token("ann"), **saved) as events:
            assert isinstance(events.next(GENEROUS), Gap)
            until(lambda: len(events._queue) >= 10, "the events after the gap", GENEROUS)
            assert events.last_event_id == first.log_position, "the gap is not handled yet"
            saved["last_event_id"] = events.last_event_id
    with SyncListener(hub.url(), token("ann"), **saved) as events:
        items = [events.next(GENEROUS) for _ in range(11)]
        assert isinstance(items[0], Gap) and [one.event_id for one in items[1:]] == [f"e-{n}" for n in range(20, 30)]
        assert events.last_event_id == items[-1].log_position


def test_an_async_listeners_cursor_stays_before_a_gap_too(hub_with):
    hub = hub_with(window_events=10)
    hub.publish_many(f"e-{n}" for n in range(30))

    async def run() -> None:
        listener = Listener(hub.url(), token("ann"), last_event_id="gone")
        async for item in listener:
            if isinstance(item, Gap):
                assert listener.last_event_id == "gone"
            else:
                assert listener.last_event_id == item.log_position
            if not isinstance(item, Gap) and item.event_id == "e-29":
                return

    asyncio.run(asyncio.wait_for(run(), GENEROUS))


def test_a_cursor_from_before_the_first_event_resumes(hub):
    with SyncListener(hub.url(), token("ann")) as events:
        events.wait_until_live(GENEROUS)
        with pytest.raises(TimeoutError):
            events.next(0.01)
        cursor = until(lambda: pytest.raises(TimeoutError, events.next, 0.01) and events.last_event_id, "a cursor")
    hub.publish("while-away")
    with SyncListener(hub.url(), token("ann"), last_event_id=cursor) as events:
        assert events.next(GENEROUS).event_id == "while-away"


# The end


def test_leaving_the_block_hides_no_exception(hub):
    with pytest.raises(ZeroDivisionError):
        with SyncListener(hub.url(), "a.b.c") as events:
            until(lambda: events._ended, "the rejection", GENEROUS)
            1 / 0


def test_the_error_of_a_listener_is_raised_by_every_call(hub):
    with SyncListener(hub.url(), "a.b.c") as events:
        for ask in (events.wait_until_live, events.next, events.next, events.__next__):
            with pytest.raises(Refused, match="token_invalid"):
                ask()


def test_a_closed_listener_yields_nothing(hub):
    with SyncListener(hub.url(), token("ann")) as events:
        pass
    assert list(events) == []
    with pytest.raises(TimeoutError):
        events.wait_until_live(0.01)


# fault: the event loop is closed, or the thread is cancelled, during the closing handshake with a stopped hub
@pytest.mark.parametrize("kind", [Listener, SyncListener])
def test_leaving_a_listener_closes_its_connection(hub_with, kind):
    hub = hub_with()
    listener = kind(hub.url(), token("ann"))

    async def listen() -> None:
        async def publish() -> None:
            await listener.live.wait()
            await asyncio.to_thread(hub.publish, "halted")

        publishing = asyncio.ensure_future(publish())
        async for _ in listener:
            await publishing
            hub.halt()
            break
        # The closing handshake begins when the loop runs.
        for _ in range(10):
            await asyncio.sleep(0)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
        earlier = len(caught)
        if kind is Listener:
            asyncio.run(listen())
        else:
            with listener as events:
                events.wait_until_live(GENEROUS)
                hub.halt()
                # On a busy machine the task is cancelled twice.
                loop, task = events._loop, events._task
                loop.call_soon_threadsafe(lambda: (task.cancel(), loop.call_later(0.1, task.cancel)))
        del listener
        gc.collect()
    assert [str(one.message) for one in caught[earlier:] if one.category is ResourceWarning] == []


def test_a_listener_logs_its_connections_and_no_token(hub_with, caplog):
    hub = hub_with()
    secret = token("ann")
    with caplog.at_level(logging.DEBUG):
        with SyncListener(hub.url(), secret) as events:
            events.wait_until_live(GENEROUS)
            hub.restart()
            hub.publish("after-restart")
            events.next(GENEROUS)
            until(lambda: events.connection_id, "a connection")
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("fanfare_publisher")]
    assert any(text.startswith("listening as connection") for text in texts)
    assert any("next attempt in" in text for text in texts)
    assert secret not in caplog.text


def test_a_listener_made_outside_a_loop_works_in_it(hub):
    listener = Listener(hub.url(), token("ann"))
    assert not listener._live, "in Python 3.9 an event belongs to the loop in which it is created"
    assert first_event(listener, hub, "made-outside").event_id == "made-outside"
    assert DEADLINE > 0


def test_one_listener_serves_one_event_loop_after_another(hub):
    listener = Listener(hub.url(), token("ann"))
    for event_id in ("first-loop", "second-loop"):
        assert first_event(listener, hub, event_id).event_id == event_id


def test_a_sync_listener_resumes_when_it_is_entered_again(hub):
    events = SyncListener(hub.url(), token("ann"))
    with events:
        events.wait_until_live(GENEROUS)
        with pytest.raises(RuntimeError, match="in use"):
            events.__enter__()
    hub.publish("between-entries")
    with events:
        assert events.next(GENEROUS).event_id == "between-entries"


@pytest.mark.parametrize("ask", [next, SyncListener.next, SyncListener.wait_until_live, list])
def test_a_listener_that_was_not_entered_raises(hub, ask):
    with pytest.raises(RuntimeError, match="with SyncListener"):
        ask(SyncListener(hub.url(), token("ann")))


@pytest.mark.parametrize("text", ["<html>", "null", "5", "[]", "{}", '{"type":7}', b"\xff"])
def test_a_frame_that_is_not_a_message_is_ignored(text):
    client = Client("ws://hub/ws", [])
    received = client.receive(text)
    assert received.unexpected and received.notification is None and not client.live


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "ack", "heartbeat": "x"},
        {"type": "goaway", "reconnect_after_ms": None},
        {"type": "note", "event_id": ["e"]},
    ],
)
def test_fields_of_an_unexpected_type_are_ignored(frame):
    assert not Client("ws://hub/ws", []).receive(json.dumps(frame)).unexpected


# attack: an event has fields named like parameters of pydantic's constructor => listeners yield it unchanged
def test_an_event_with_any_field_names_is_yielded(hub):
    fields = {"data": [1], "cls": 1, "self": 2, "_fields_set": 3, "model_config": 4, "note": "kept"}
    with SyncListener(hub.url(), token("ann")) as events:
        events.wait_until_live(GENEROUS)
        event = {"type": "note", "event_id": "odd-fields", "audience": "everyone", **fields}
        assert hub.post("/events", event).status == 201
        event = events.next(GENEROUS)
    assert (event.event_id, event.data) == ("odd-fields", [1])
    assert event.model_extra.pop("log_position").startswith("pos-")
    assert event.model_extra == {name: fields[name] for name in fields if name != "data"}


@pytest.mark.parametrize("error", [Refused(1008, "forbidden"), TopicRefused("forbidden", "not allowed", "a")])
def test_the_errors_of_a_listener_can_be_pickled(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
