"""Publishing over Redis' channels, as steps: an event is said on a channel, where every hub hears it, and looked for in the log."""

from __future__ import annotations

import logging
from typing import Callable, Dict, Generator, List, NamedTuple, Optional, Tuple, Union

from .errors import EventRejected, PublishError, Unavailable
from .steps import ATTEMPT, Failed, Find, Outgoing, Published, Say, Step, Wait, Way, parsed, pause

log = logging.getLogger(__name__)

#: How long a hub may take to put into the log what it heard on a channel, in seconds, before it is said again.
HEARING = 1.0

#: The most events that are said at once.
BATCH_EVENTS = 256

Clock = Callable[[], float]


class Keys(NamedTuple):
    """The names of a hub's channels and keys."""

    #: What channels begin with.
    channels: str
    #: The hash of the log's events.
    ids: str
    #: What the key of the reason for a rejected event begins with.
    reason: str

    @classmethod
    def of(cls, namespace: str, cluster: bool) -> Keys:
        tagged = f"{{{namespace}}}" if cluster else namespace
        return cls(namespace, f"{tagged}:ids", f"{tagged}:refused:")


class _Progress:
    """What became of each event."""

    def __init__(self, events: List[Outgoing], keys: Keys):
        self.keys = keys
        self.waiting: Dict[str, Outgoing] = {}
        for event in events:
            # Of two with the same id the first counts, as in the log.
            self.waiting.setdefault(event.event_id, event)
        self.published: Dict[str, Published] = {}
        self.rejected: Dict[str, EventRejected] = {}
        self.said = False

    def find(self, seconds: float) -> Find:
        ids = list(self.waiting)
        return Find(self.keys.ids, ids, [self.keys.reason + event_id for event_id in ids], seconds)

    def say(self, seconds: float) -> Say:
        self.said = True
        messages = [(f"{self.keys.channels}:{event.target.channel}", event.text) for event in self.waiting.values()]
        # An earlier attempt under the same id may have been rejected.
        return Say(messages, [self.keys.reason + event_id for event_id in self.waiting], seconds)

    def note(self, found: List[Tuple[Optional[int], Optional[str]]]) -> None:
        for event_id, (sequence, reason) in zip(list(self.waiting), found):
            if sequence is not None:
                self.published[event_id] = Published(event_id, sequence, duplicate=not self.said)
            elif reason is not None and self.said:
                answer = parsed(reason)
                code, message = str(answer.get("code", "")), str(answer.get("message", reason))
                self.rejected[event_id] = EventRejected(f"the hub rejected the event: {message}", code=code)
            else:
                continue
            del self.waiting[event_id]


def publish(event: Outgoing, keys: Keys, deadline: float, margin: float, now: Clock) -> Way[Published]:
    """Says one event until it is in the log."""
    try:
        (published,) = yield from _publish_batch([event], keys, deadline, margin, now)
    except PublishError as error:
        error.index = None
        raise
    return published


def publish_many(
    events: List[Outgoing], keys: Keys, patience: float, margin: float, now: Clock
) -> Way[List[Published]]:
    """Says events until they are in the log, as many at once as a hub hears without losing some."""
    done: List[Published] = []
    for start in range(0, len(events), BATCH_EVENTS):
        batch = events[start : start + BATCH_EVENTS]
        try:
            done += yield from _publish_batch(batch, keys, now() + patience, margin, now)
        except PublishError as error:
            error.published = [*done, *error.published]
            error.index = start + (error.index or 0)
            raise
    return done


def _publish_batch(
    events: List[Outgoing], keys: Keys, deadline: float, margin: float, now: Clock
) -> Way[List[Published]]:
    """Looks, says, looks again until all are in the log or rejected. The log takes each ``event_id`` once, so it may be said often.

    No step begins later than ``margin`` before the deadline: a step may take so long.
    """
    progress, attempt = _Progress(events, keys), 0
    while True:
        problem = yield from _round(progress, deadline - margin, now)
        if not progress.waiting:
            return _results(progress, events)
        wait = pause(attempt)
        if now() + wait >= deadline - margin:
            raise _failure(progress, events, Unavailable(problem, may_be_published=progress.said))
        attempt += 1
        log.log(logging.WARNING if attempt == 1 else logging.INFO, "%s; trying again in %.1f s", problem, wait)
        yield Wait(wait)


def _round(progress: _Progress, until: float, now: Clock) -> Generator[Step, _Outcome, str]:
    """Says what is not in the log yet and waits for it. Returns what is wrong if something is left."""
    for step in (progress.find, progress.say):
        problem = yield from _take(progress, step(_seconds(until, now)))
        if problem or not progress.waiting:
            return problem
    heard_by, wait = min(until, now() + HEARING), 0.001
    while now() < heard_by:
        yield Wait(wait)
        problem = yield from _take(progress, progress.find(_seconds(until, now)))
        if problem or not progress.waiting:
            return problem
        wait = min(2 * wait, 0.05)
    return "no hub put it into the log: is one running on this Redis, with the same redis_namespace?"


def _take(progress: _Progress, step: Step) -> Generator[Step, _Outcome, str]:
    """Takes a step and notes what it found. Returns what is wrong if Redis can't be reached."""
    outcome = yield step
    if isinstance(outcome, Failed):
        return f"Redis can't be reached: {outcome.reason}"
    if isinstance(outcome, list):
        progress.note(outcome)
    return ""


def _seconds(until: float, now: Clock) -> float:
    return max(0.05, min(ATTEMPT, until - now()))


def _results(progress: _Progress, events: List[Outgoing]) -> List[Published]:
    for event in events:
        if event.event_id in progress.rejected:
            raise _failure(progress, events, progress.rejected[event.event_id])
    return _in_log(progress, events)


def _in_log(progress: _Progress, events: List[Outgoing]) -> List[Published]:
    seen: Dict[str, Published] = {}
    results = []
    for event in events:
        published = progress.published.get(event.event_id)
        if published is None:
            continue
        if event.event_id in seen:
            published = Published(published.event_id, published.sequence, duplicate=True)
        seen[event.event_id] = published
        results.append(published)
    return results


def _failure(progress: _Progress, events: List[Outgoing], error: PublishError) -> PublishError:
    missing = (index for index, event in enumerate(events) if event.event_id not in progress.published)
    error.index, error.published = next(missing, None), _in_log(progress, events)
    return error


_Outcome = Union[Failed, List[Tuple[Optional[int], Optional[str]]], int]
