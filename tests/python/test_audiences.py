"""Audiences in the Python package: checked before anything is sent, over HTTP and Redis, with and without asyncio."""

import asyncio
import uuid

import pytest
from fanfare_publisher import (
    EVERYONE,
    AsyncPublisher,
    EventRejected,
    InvalidAudience,
    InvalidEvent,
    Publisher,
    PublishError,
    WSMessage,
    to_connection,
    to_topic,
    to_user,
)
from hub import Hub

NOT_AUDIENCES = {
    "a user ID": "ann",
    "another word": "broadcast",
    "an empty str": "",
    "nothing": None,
    "a number": 7,
    "a list": ["everyone"],
    "a tuple": ("user", "ann"),
    "an empty object": {},
    "two kinds": {"user": "ann", "topic": "project:7"},
    "another kind": {"users": ["ann"]},
    "everyone as a kind": {"everyone": True},
    "a user without an ID": {"user": None},
    "a user with an empty ID": {"user": ""},
    "a user that is a bool": {"user": False},
    "a user ID that is too long": {"user": "x" * 257},
    "a user ID that is not Unicode": {"user": "\\ud800".encode().decode("unicode_escape")},
    "several users": {"user": ["ann", "bob"]},
    "a connection that is not a UUID": {"connection": "7"},
    "a connection without an ID": {"connection": None},
    "a topic with a comma": {"topic": "project:7,secret"},
    "a pattern": {"topic": "project:*"},
    "a topic with a space": {"topic": "project 7"},
    "a topic without a name": {"topic": ""},
    "a topic that is too long": {"topic": "x" * 129},
    "a reserved topic": {"topic": "$sys"},
    "a topic that is not a str": {"topic": 7},
}


@pytest.fixture(params=["with asyncio", "without asyncio"])
def publish(request, way):
    """Publishes a message to an audience."""

    async def run(message, audience):
        async with AsyncPublisher(**way) as publisher:
            return await publisher.publish(message, audience)

    def with_asyncio(message, audience):
        return asyncio.run(run(message, audience))

    def without(message, audience):
        with Publisher(**way) as publisher:
            return publisher.publish(message, audience)

    return with_asyncio if request.param == "with asyncio" else without


# attack: a publisher passes a user ID, None or a list of topics as the audience => it raises, and nothing is sent
@pytest.mark.parametrize("audience", NOT_AUDIENCES.values(), ids=NOT_AUDIENCES.keys())
def test_an_invalid_audience_raises_and_nothing_is_sent(publish, node, audience):
    with node.client("bob", {"topics": ["*"]}, topics="project:7,secret") as bob:
        with pytest.raises(InvalidAudience) as raised:
            publish(WSMessage(type="note"), audience)
        assert isinstance(raised.value, PublishError) and isinstance(raised.value, ValueError)
        assert not raised.value.may_be_published
        node.publish(last := str(uuid.uuid4()))
        assert bob.ids_until(last) == [last]


def test_every_audience_has_two_forms(publish, node):
    with node.client("42", {"topics": ["project:*"]}, topics="project:7") as client:
        audiences = [
            "everyone",
            EVERYONE,
            {"user": "42"},
            {"user": 42},
            to_user(42),
            {"connection": client.id},
            to_connection(uuid.UUID(client.id)),
            {"topic": "project:7"},
            to_topic("project:7"),
        ]
        ids = [publish(WSMessage(type="note"), audience).event_id for audience in audiences]
        assert client.ids_until(ids[-1]) == ids


def test_the_audience_has_no_default(way):
    with Publisher(**way) as publisher, pytest.raises(TypeError, match="audience"):
        publisher.publish(WSMessage(type="note"))


# attack: a publisher passes a missing ID (None) as the user => it raises, and does not publish to a user named None
@pytest.mark.parametrize("lost", [None, "", True, b"ann", 1.5], ids=repr)
def test_the_methods_for_one_audience_check_it_as_well(way, lost):
    message = WSMessage(type="note")
    with Publisher(**way) as publisher:
        for method in (publisher.publish_to_user, publisher.publish_to_connection, publisher.publish_to_topic):
            with pytest.raises(InvalidAudience):
                method(lost, message)


@pytest.mark.parametrize("field", ["audience", "user", "users", "connection", "topic", "channels"])
def test_an_audience_inside_the_message_raises(publish, field):
    with pytest.raises(InvalidEvent, match="audience"):
        publish(WSMessage(type="note", **{field: "ann"}), "everyone")


def test_an_invalid_message_raises(publish):
    for message in ({"type": "note"}, None, "note"):
        with pytest.raises(InvalidEvent, match="WSMessage"):
            publish(message, "everyone")
    with pytest.raises(InvalidEvent, match="JSON"):
        publish(WSMessage(type="note", data={"x": object()}), "everyone")


def test_a_rejection_of_the_hub_is_raised_immediately_with_its_reason(publish):
    message = WSMessage(type="$sys")
    with pytest.raises(EventRejected, match="reserved") as rejected:
        publish(message, "everyone")
    assert rejected.value.code == "invalid" and not rejected.value.may_be_published
    with pytest.raises(EventRejected, match="max_event_bytes") as rejected:
        publish(WSMessage(type="note", data={"text": "x" * 70_000}), "everyone")
    assert rejected.value.code in ("event_too_large", "body_too_large")
    message.type = "note"
    assert not publish(message, "everyone").duplicate, "the ID of a rejected event can be used"


def test_the_index_of_an_invalid_event_is_reported(way):
    events = [(WSMessage(type="note", data={"n": n}), to_user("ann")) for n in range(3)]
    with Publisher(**way) as publisher:
        with pytest.raises(InvalidAudience, match=r"events\[1\]") as raised:
            publisher.publish_many([events[0], (events[1][0], "ann"), events[2]])
        assert raised.value.index == 1
        with pytest.raises(InvalidEvent, match=r"events\[0\] is not a pair"):
            publisher.publish_many([events[0][0]])
        with pytest.raises(EventRejected, match="reserved") as rejected:
            publisher.publish_many([events[0], (WSMessage(type="$sys"), "everyone"), events[2]])
        assert rejected.value.index == 1
        assert [one.duplicate for one in publisher.publish_many(events)][1] is False


def test_many_events_reach_their_audiences_in_order(way, node):
    events = [(WSMessage(type="note", data={"n": n}), "everyone" if n % 3 else to_user("ann")) for n in range(1_200)]
    with Publisher(**way, patience=60) as publisher, node.client("ann") as ann, node.client("bob") as bob:
        published = publisher.publish_many(events)
        ids = [message.event_id for message, _ in events]
        assert [one.event_id for one in published] == ids
        sequences = [one.sequence for one in published]
        assert sequences == sorted(set(sequences)) and not any(one.duplicate for one in published)
        assert ann.ids_until(ids[-1]) == ids
        assert bob.ids_until(ids[-1]) == [one for n, one in enumerate(ids) if n % 3]
        again = publisher.publish_many([events[7], events[7], events[3]])
        assert [one.sequence for one in again] == [sequences[7], sequences[7], sequences[3]]
        assert all(one.duplicate for one in again)
        assert publisher.publish_many([]) == []
