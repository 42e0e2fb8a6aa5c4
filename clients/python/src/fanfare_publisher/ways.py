"""The two ways to a hub, as steps: what to do next, given what came of the step before. Nothing here does I/O, so that
the publishers with and without asyncio are one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Callable, Dict, Generator, Optional, Union

from .errors import PublishError
from .messages import WSMessage

#: The longest pause between two attempts, in seconds.
LONGEST_PAUSE = 2.0
#: How long a hub may take to put into the log what it heard on a channel, in seconds, before it is said again.
HEARING = 1.0


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


@dataclass(frozen=True)
class Post:
    """Post this to the hub. The outcome is (status, headers, text)."""

    path: str
    body: str


@dataclass(frozen=True)
class Say:
    """Publish this on a channel of Redis."""

    channel: str
    text: str


@dataclass(frozen=True)
class Find:
    """Look for an event in the log's index. The outcome is its sequence, or None."""

    key: str
    event_id: str


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Failed:
    """The outcome of a step that did not come through: no connection, no answer in time."""

    reason: str


Step = Union[Post, Say, Find, Wait]
Way = Generator[Step, Any, Published]
Audience = Union[str, Dict[str, str]]


def text_of(message: WSMessage) -> str:
    return message.model_dump_json()


def _pause(attempt: int, at_least: float = 0.0) -> float:
    return at_least + random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**attempt))


def over_http(message: WSMessage, audience: Audience, deadline: float, now: Callable[[], float]) -> Way:
    """Posts until the hub has taken it. The same ``event_id`` each time, so that it is published once."""
    fields = json.loads(text_of(message))
    body = json.dumps({**fields, "audience": audience})
    attempt, uncertain = 0, False
    while True:
        outcome = yield Post("/events", body)
        if isinstance(outcome, Failed):
            why, after, uncertain = PublishError(f"the hub can't be reached: {outcome.reason}"), 0.0, True
        else:
            status, headers, text = outcome
            if status in (200, 201):
                answer = json.loads(text)
                position = answer["position"]
                sequence = int(position.rsplit("-", 1)[1])
                return Published(answer["event_id"], sequence, bool(answer["duplicate"]), position)
            why, after = _refusal(status, text), float(headers.get("retry-after") or 0)
            if status not in (429, 500, 502, 503, 504):
                raise why
            uncertain = uncertain or status != 429
        pause = _pause(attempt, after)
        if now() + pause > deadline:
            why.may_be_published = uncertain
            raise why
        attempt += 1
        yield Wait(pause)


def _refusal(status: int, text: str) -> PublishError:
    try:
        answer = json.loads(text)
        error, message = str(answer.get("error", "")), str(answer.get("message") or answer.get("detail") or text)
    except (ValueError, AttributeError):
        error, message = "", text[:200]
    return PublishError(f"the hub answered {status}: {message}", status=status, error=error)


def over_redis(
    message: WSMessage, channel: str, index: str, deadline: float, now: Callable[[], float]
) -> Way:
    """Says it on a channel, where every hub hears it, and looks whether one has put it into the log; says it again until it is
    there. The log takes each ``event_id`` once."""
    text, event_id = text_of(message), message.event_id
    attempt, said, reason = 0, False, ""
    while True:
        found = yield Find(index, event_id)
        if isinstance(found, int):
            return Published(event_id, found, duplicate=not said)
        outcome = found if isinstance(found, Failed) else (yield Say(channel, text))
        if isinstance(outcome, Failed):
            reason = f"Redis can't be reached: {outcome.reason}"
        else:
            said, reason = True, "no hub put it into the log: is one running on this Redis, with the same redis_namespace?"
            pause, heard_by = 0.001, now() + HEARING
            while now() < heard_by:
                yield Wait(pause)
                found = yield Find(index, event_id)
                if isinstance(found, int):
                    return Published(event_id, found, duplicate=False)
                if isinstance(found, Failed):
                    reason = f"Redis can't be reached: {found.reason}"
                    break
                pause = min(2 * pause, 0.05)
        pause = _pause(attempt)
        if now() + pause > deadline:
            raise PublishError(reason, may_be_published=said)
        attempt += 1
        yield Wait(pause)
