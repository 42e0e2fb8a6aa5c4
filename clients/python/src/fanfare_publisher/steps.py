"""The steps of a publish, without I/O, so that the publishers with and without asyncio share them.

A publish is a generator of steps (:data:`Steps`). It yields a step, and the publisher executes the step and sends the
outcome back into the generator.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Dict, Generator, Iterable, List, NamedTuple, Optional, Tuple, TypeVar, Union

from .audience import Target, check_audience
from .errors import InvalidEvent
from .messages import WSMessage, is_absent
from .published import Published

#: The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 2.0

#: Time limit of one step, in seconds, if the deadline is later.
STEP_TIMEOUT = 5.0

#: Fields that look like an audience. They do not select one, and the hub's API rejects them.
_MISPLACED = (
    "audience", "audiences", "user", "users", "connection", "connections", "topic", "topics", "channel", "channels",
)  # fmt: skip


class Outgoing(NamedTuple):
    """A checked event with its audience."""

    event_id: str
    text: str
    target: Target


@dataclass(frozen=True)
class Post:
    """Post ``body`` to the hub, within ``seconds``. The outcome is (status, headers, text)."""

    path: str
    body: str
    seconds: float


@dataclass(frozen=True)
class PublishOnChannels:
    """Delete keys, and then publish messages of (channel, text) on Redis. The outcome is the number of subscribers that
    received the last message."""

    messages: List[Tuple[str, str]]
    delete: List[str]
    seconds: float


@dataclass(frozen=True)
class FindInLog:
    """Look up events in the index of the log, and the reasons of rejected ones. The outcome is (sequence, reason) for
    each event."""

    index: str
    event_ids: List[str]
    reasons: List[str]
    seconds: float


@dataclass(frozen=True)
class Wait:
    """Wait for ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class Failed:
    """The outcome of a failed step: no connection, or no response in time."""

    reason: str
    #: The server may have received the request.
    sent: bool = True


#: The longest `event_id` that the hub accepts.
MAX_EVENT_ID_BYTES = 128

Step = Union[Post, PublishOnChannels, FindInLog, Wait]
_Result = TypeVar("_Result")
Steps = Generator[Step, Any, _Result]


def outgoing(message: Any, audience: Any) -> Outgoing:
    """Checks an event and its audience. Raises :class:`InvalidEvent`."""
    target = check_audience(audience)
    if not isinstance(message, WSMessage):
        raise InvalidEvent(f"the message must be a WSMessage, not {type(message).__name__}")
    # Pydantic does not validate assignments. The hub would publish the event under an ID that it generates.
    event_id = getattr(message, "event_id", None)
    if not isinstance(event_id, str) or is_absent(event_id):
        expected = "a str that is not empty, null, undefined, NaN or None"
        raise InvalidEvent(f"the event_id must be {expected}, not {event_id!r}")
    for name in _MISPLACED:
        if name in (message.model_extra or {}) or name in type(message).model_fields:
            raise InvalidEvent(f"the message has a field {name!r}: pass the audience as the argument `audience`")
    try:
        found = Outgoing(event_id, message.model_dump_json(), target)
    except Exception as error:
        raise InvalidEvent(f"the message cannot be written as JSON: {error}") from error
    # Checked here, because over Redis the hub reports a rejection under the event's ID, which would be too long.
    if len(event_id.encode()) > MAX_EVENT_ID_BYTES:
        raise InvalidEvent(f"the event_id has more than {MAX_EVENT_ID_BYTES} bytes: {event_id[:40]!r}...")
    return found


def all_outgoing(events: Iterable[Any]) -> List[Outgoing]:
    """Checks pairs of a message and its audience, as :func:`outgoing` does."""
    checked = []
    for index, event in enumerate(events):
        if not (isinstance(event, tuple) and len(event) == 2):
            raise InvalidEvent(f"events[{index}] is not a pair of a message and its audience", index=index)
        try:
            checked.append(outgoing(*event))
        except InvalidEvent as error:
            raise type(error)(f"events[{index}]: {error}", index=index) from error
    return checked


def pause(attempt: int, at_least: float = 0.0) -> float:
    """Returns the pause before the next attempt, in seconds."""
    return at_least + random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2.0 ** min(attempt, 10)))


def parsed(text: Union[str, bytes]) -> Dict[str, Any]:
    """Returns the object of a JSON text, or an empty one if the text is not a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
