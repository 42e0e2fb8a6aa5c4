"""Who an event is for, and the names that can be in it. The rules are the hub's, so that an event that Redis' channels would
take in silence is rejected as it is over HTTP."""

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
    """Every connection that subscribed to the topic."""

    topic: str


#: Who an event is for.
Audience = Union[Literal["everyone"], ToUser, ToConnection, ToTopic]

#: Every connection.
EVERYONE: Literal["everyone"] = "everyone"

UserId = Union[str, int, uuid.UUID]


def to_user(user_id: UserId) -> ToUser:
    """The audience of one user: all their connections."""
    return {"user": _user(user_id)}


def to_connection(connection_id: Union[str, uuid.UUID]) -> ToConnection:
    """The audience of one connection."""
    return {"connection": _connection(connection_id)}


def to_topic(topic: str) -> ToTopic:
    """The audience of all who subscribed to a topic."""
    return {"topic": _topic(topic)}


class Target(NamedTuple):
    """A checked audience."""

    kind: Literal["everyone", "user", "connection", "topic"]
    name: str = ""

    @property
    def value(self) -> Any:
        """As the hub's API has it."""
        return self.kind if self.kind == "everyone" else {self.kind: self.name}

    @property
    def channel(self) -> str:
        """As Redis' channels have it, behind the namespace."""
        return "broadcast" if self.kind == "everyone" else f"{self.kind}:{self.name}"


def check_audience(audience: Any) -> Target:
    """The audience, checked. Raises :class:`InvalidAudience`."""
    if isinstance(audience, str):
        if audience == "everyone":
            return Target("everyone")
        raise InvalidAudience(f"the audience {audience!r} is not valid: a user is {{\"user\": {audience!r}}}; use {_FORMS}")
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
    """Why a name can't be a topic, if it can't."""
    if not isinstance(topic, str):
        return f"a topic is a str, not {_shown(topic)}"
    if not topic:
        return "a topic must not be empty"
    if _bytes(topic) > MAX_TOPIC_BYTES:
        return f"a topic has at most {MAX_TOPIC_BYTES} bytes"
    if any(c in ",*" or c.isspace() or unicodedata.category(c) in ("Cc", "Cs") for c in topic):
        return f"the topic {topic!r} has a comma, an asterisk, white space or a control character"
    return None


def _user(user_id: Any) -> str:
    # `None` and `False` are what a lost id looks like.
    if isinstance(user_id, bool) or not isinstance(user_id, (str, int, uuid.UUID)):
        raise InvalidAudience(f"a user's id is a str, an int or a UUID, not {_shown(user_id)}")
    text = str.__str__(user_id) if isinstance(user_id, str) else str(user_id)
    if not 1 <= _bytes(text) <= MAX_USER_BYTES:
        raise InvalidAudience(f"a user's id must have 1 to {MAX_USER_BYTES} bytes")
    return text


def _connection(connection_id: Any) -> str:
    text = str(connection_id) if isinstance(connection_id, uuid.UUID) else connection_id
    if not isinstance(text, str) or not _CONNECTION.fullmatch(text):
        raise InvalidAudience(f"a connection's id is a UUID, not {_shown(connection_id)}")
    return text


def _topic(topic: Any) -> str:
    problem = topic_problem(topic)
    if problem:
        raise InvalidAudience(problem)
    text: str = topic
    if text.startswith("$"):
        raise InvalidAudience(f"the topic {text!r} can't be published to: topics that begin with $ are the hub's own")
    return text


def _bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidAudience("a name in the audience is not valid Unicode: it has a lone surrogate") from None


def _shown(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
