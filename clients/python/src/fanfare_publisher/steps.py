"""The steps that a publish is made of. A way to a hub is a generator of them: it yields what to do next and is sent what came of
it. It does no I/O, so that the publishers with and without asyncio are one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Dict, Generator, Iterable, List, NamedTuple, Optional, Tuple, TypeVar, Union

from .audience import Target, check_audience
from .errors import InvalidEvent
from .messages import WSMessage, is_absent

#: The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 2.0

#: How long one step may take, in seconds, where the deadline leaves more.
ATTEMPT = 5.0

#: Fields that look like an audience. In an event they select no receiver, and the hub's API rejects them.
_MISPLACED = (
    "audience", "audiences", "user", "users", "connection", "connections", "topic", "topics", "channel", "channels",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """An event that is in the log."""

    event_id: str
    #: Its place in the log: ascending for everything a hub publishes.
    sequence: int
    #: An event with this ``event_id`` was there already; that one counts.
    duplicate: bool
    #: The place as an id that clients know (``pos-...``); over HTTP alone.
    position: Optional[str] = None


class Outgoing(NamedTuple):
    """An event that was checked, and who it is for."""

    event_id: str
    text: str
    target: Target


@dataclass(frozen=True)
class Post:
    """Post this to the hub within so many seconds. The outcome is (status, headers, text)."""

    path: str
    body: str
    seconds: float


@dataclass(frozen=True)
class Say:
    """Publish these (channel, text) on Redis, after the keys are deleted. The outcome is how many subscribers heard the last one."""

    messages: List[Tuple[str, str]]
    forget: List[str]
    seconds: float


@dataclass(frozen=True)
class Find:
    """Look for events in the log's index, and for why they were rejected. The outcome is (sequence, reason) for each."""

    index: str
    event_ids: List[str]
    reasons: List[str]
    seconds: float


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Failed:
    """The outcome of a step that did not succeed: no connection, or no answer in time."""

    reason: str
    #: The request may have arrived.
    sent: bool = True


#: The longest `event_id` that the hub accepts.
MAX_EVENT_ID_BYTES = 128

Step = Union[Post, Say, Find, Wait]
_Result = TypeVar("_Result")
Way = Generator[Step, Any, _Result]


def outgoing(message: Any, audience: Any) -> Outgoing:
    """Checks an event and its audience before anything is sent."""
    target = check_audience(audience)
    if not isinstance(message, WSMessage):
        raise InvalidEvent(f"a message is a WSMessage, not {type(message).__name__}")
    # Assignments are not validated. The hub would publish it under an id of its own.
    event_id = getattr(message, "event_id", None)
    if not isinstance(event_id, str) or is_absent(event_id):
        raise InvalidEvent(f"the event_id must be a str that is not empty, null, undefined, NaN or None, not {event_id!r}")
    for name in _MISPLACED:
        if name in (message.model_extra or {}) or name in type(message).model_fields:
            raise InvalidEvent(f"the message has a field {name!r}: say who it is for with the argument `audience`")
    try:
        found = Outgoing(event_id, message.model_dump_json(), target)
    except Exception as error:
        raise InvalidEvent(f"the message can't be written as JSON: {error}") from error
    # Over Redis a hub has no place to write why it rejected such an id.
    if len(event_id.encode()) > MAX_EVENT_ID_BYTES:
        raise InvalidEvent(f"the event_id has more than {MAX_EVENT_ID_BYTES} bytes: {event_id[:40]!r}...")
    return found


def all_outgoing(events: Iterable[Any]) -> List[Outgoing]:
    """As :func:`outgoing`, for pairs of a message and its audience."""
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
    """How long to wait before the next attempt, in seconds."""
    return at_least + random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2.0 ** min(attempt, 10)))


def parsed(text: Union[str, bytes]) -> Dict[str, Any]:
    """The object of a JSON text; empty if it is something else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
