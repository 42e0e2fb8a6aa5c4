"""The audience of an event, and the check of the names in it.

The rules are the hub's. A channel of Redis returns no error, so they are checked here before anything is sent.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from typing import Any, Literal, Mapping, NamedTuple, Optional, TypedDict, Union

from .errors import InvalidAudience

MAX_TOPIC_BYTES = 128
MAX_USER_BYTES = 256

_CONNECTION = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

_FORMS = '"everyone", {"user": ID}, {"connection": UUID} or {"topic": NAME}'


class ToUser(TypedDict):
    """Every connection of one user."""

    user: str


class ToConnection(TypedDict):
    """One connection."""

    connection: str


class ToTopic(TypedDict):
    """Every connection that is subscribed to the topic."""

    topic: str


#: The audience of an event.
Audience = Union[Literal["everyone"], ToUser, ToConnection, ToTopic]

#: Every connection.
EVERYONE: Literal["everyone"] = "everyone"

UserId = Union[str, int, uuid.UUID]


def to_user(user_id: UserId) -> ToUser:
    """Returns the audience of one user: all connections of the user."""
    return {"user": _user(user_id)}


def to_connection(connection_id: Union[str, uuid.UUID]) -> ToConnection:
    """Returns the audience of one connection."""
    return {"connection": _connection(connection_id)}


def to_topic(topic: str) -> ToTopic:
    """Returns the audience of all subscribers of a topic."""
    return {"topic": _topic(topic)}


class Target(NamedTuple):
    """A checked audience."""

    kind: Literal["everyone", "user", "connection", "topic"]
    name: str = ""

    @property
    def value(self) -> Any:
        """The audience in the format of the hub's HTTP API."""
        return self.kind if self.kind == "everyone" else {self.kind: self.name}

    @property
    def channel(self) -> str:
        """The name of the Redis channel, without the namespace."""
        return "broadcast" if self.kind == "everyone" else f"{self.kind}:{self.name}"


def check_audience(audience: Any) -> Target:
    """Returns the checked audience. Raises :class:`InvalidAudience`."""
    if isinstance(audience, str):
        if audience == "everyone":
            return Target("everyone")
        user = f'{{"user": {audience!r}}}'
        raise InvalidAudience(f"the audience {audience!r} is not valid: a user is {user}; expected {_FORMS}")
    if not isinstance(audience, Mapping) or len(audience) != 1:
        raise InvalidAudience(f"the audience is not valid: expected {_FORMS}, not {_shown(audience)}")
    ((kind, name),) = audience.items()
    if kind == "user":
        return Target("user", _user(name))
    if kind == "connection":
        return Target("connection", _connection(name))
    if kind == "topic":
        return Target("topic", _topic(name))
    raise InvalidAudience(f"the audience has no kind {kind!r}: expected {_FORMS}")


def topic_problem(topic: Any) -> Optional[str]:
    """Returns why a name is not a valid topic, or ``None`` if it is valid."""
    if not isinstance(topic, str):
        return f"a topic is a str, not {_shown(topic)}"
    if not topic:
        return "a topic must not be empty"
    if _bytes(topic) > MAX_TOPIC_BYTES:
        return f"a topic has at most {MAX_TOPIC_BYTES} bytes"
    if any(c in ",*" or c.isspace() or unicodedata.category(c) in ("Cc", "Cs") for c in topic):
        return f"the topic {topic!r} must not contain a comma, an asterisk, white space or a control character"
    return None


def _user(user_id: Any) -> str:
    # `None` and `False` are rejected, because they are typically a missing ID.
    if isinstance(user_id, bool) or not isinstance(user_id, (str, int, uuid.UUID)):
        raise InvalidAudience(f"a user ID is a str, an int or a UUID, not {_shown(user_id)}")
    text = str.__str__(user_id) if isinstance(user_id, str) else str(user_id)
    if not 1 <= _bytes(text) <= MAX_USER_BYTES:
        raise InvalidAudience(f"a user ID must have 1 to {MAX_USER_BYTES} bytes")
    return text


def _connection(connection_id: Any) -> str:
    text = str(connection_id) if isinstance(connection_id, uuid.UUID) else connection_id
    if not isinstance(text, str) or not _CONNECTION.fullmatch(text):
        raise InvalidAudience(f"a connection ID is a UUID, not {_shown(connection_id)}")
    return text


def _topic(topic: Any) -> str:
    problem = topic_problem(topic)
    if problem:
        raise InvalidAudience(problem)
    text: str = topic
    if text.startswith("$"):
        raise InvalidAudience(f"cannot publish to {text!r}: topics that begin with $ are reserved for the hub")
    return text


def _bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidAudience("a name in the audience is not valid Unicode: it has a lone surrogate") from None


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
