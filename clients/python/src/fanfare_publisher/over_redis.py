"""The steps of a publish over Redis channels.

The publisher sends an event on a channel, which every node subscribes to, and then looks the event up in the log.
Channels lose messages without an error, so only the log shows that an event was accepted.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, Generator, List, NamedTuple, Optional, Tuple, Union

from .errors import EventRejected, PublishError, Unavailable
from .published import Published
from .steps import STEP_TIMEOUT, Failed, FindInLog, Outgoing, PublishOnChannels, Step, Steps, Wait, parsed, pause

log = logging.getLogger(__name__)

#: How long the publisher waits for a sent event to appear in the log, in seconds, before it sends the event again.
APPEND_TIMEOUT = 1.0

#: The maximum number of events that are sent at once, so that a node reads them without losing some.
BATCH_EVENTS = 256

Clock = Callable[[], float]


class Keys(NamedTuple):
    """The names of the hub's channels and keys."""

    #: The prefix of the channels.
    channels: str
    #: The hash that maps the IDs of the log's events to their sequences.
    ids: str
    #: The prefix of the keys that hold the reasons of rejected events.
    reason: str

    @classmethod
    def of(cls, namespace: str, cluster: bool) -> Keys:
        tagged = f"{{{namespace}}}" if cluster else namespace
        return cls(namespace, f"{tagged}:ids", f"{tagged}:refused:")


class _Progress:
    """The state of each event of a publish."""

    def __init__(self, events: List[Outgoing], keys: Keys):
        self.keys = keys
        self.waiting: Dict[str, Outgoing] = {}
        for event in events:
            # Of two events with the same ID the first counts, as in the log.
            self.waiting.setdefault(event.event_id, event)
        self.published: Dict[str, Published] = {}
        self.rejected: Dict[str, EventRejected] = {}
        self.sent = False

    def find(self, seconds: float) -> FindInLog:
        ids = list(self.waiting)
        return FindInLog(self.keys.ids, ids, [self.keys.reason + event_id for event_id in ids], seconds)

    def send(self, seconds: float) -> PublishOnChannels:
        self.sent = True
        messages = [(f"{self.keys.channels}:{event.target.channel}", event.text) for event in self.waiting.values()]
        # The reason of an earlier publish with the same ID must be deleted first, or it would count for this one.
        return PublishOnChannels(messages, [self.keys.reason + event_id for event_id in self.waiting], seconds)

    def record(self, found: List[Tuple[Optional[int], Optional[str]]]) -> None:
        for event_id, (sequence, reason) in zip(list(self.waiting), found):
            if sequence is not None:
                self.published[event_id] = Published(event_id, sequence, duplicate=not self.sent)
            elif reason is not None and self.sent:
                answer = parsed(reason)
                code, message = str(answer.get("code", "")), str(answer.get("message", reason))
                self.rejected[event_id] = EventRejected(f"the hub rejected the event: {message}", code=code)
            else:
                continue
            del self.waiting[event_id]


def publish(event: Outgoing, keys: Keys, deadline: float, margin: float, now: Clock) -> Steps[Published]:
    """Sends an event until it is in the log or rejected."""
    try:
        (published,) = yield from _publish_batch([event], keys, deadline, margin, now)
    except PublishError as error:
        error.index = None
        raise
    return published


def publish_many(
    events: List[Outgoing], keys: Keys, patience: float, margin: float, now: Clock
) -> Steps[List[Published]]:
    """Sends events in batches until they are in the log. ``patience`` applies to each batch."""
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
) -> Steps[List[Published]]:
    """Sends events, and looks them up, until all are in the log or rejected.

    The log accepts each ``event_id`` once, so sending an event again is safe.
    No step begins later than ``margin`` before the deadline, because a step may take that long.
    """
    progress, attempt = _Progress(events, keys), 0
    while True:
        problem = yield from _round(progress, deadline - margin, now)
        if not progress.waiting:
            return _results(progress, events)
        wait = pause(attempt)
        if now() + wait >= deadline - margin:
            raise _failure(progress, events, Unavailable(problem, may_be_published=progress.sent))
        attempt += 1
        log.log(logging.WARNING if attempt == 1 else logging.INFO, "%s; retrying in %.1f s", problem, wait)
        yield Wait(wait)


def _round(progress: _Progress, until: float, now: Clock) -> Generator[Step, _Outcome, str]:
    """Sends the events that are not in the log yet, and waits for them. Returns the problem if some are missing."""
    # The lookup comes first: it finds duplicates, and events of an earlier round that arrived late.
    for step in (progress.find, progress.send):
        problem = yield from _execute(progress, step(_seconds(until, now)))
        if problem or not progress.waiting:
            return problem
    appended_by, wait = min(until, now() + APPEND_TIMEOUT), 0.001
    while now() < appended_by:
        yield Wait(wait)
        problem = yield from _execute(progress, progress.find(_seconds(until, now)))
        if problem or not progress.waiting:
            return problem
        wait = min(2 * wait, 0.05)
    return "no hub appended the event to the log; check that a hub uses this Redis with the same redis_namespace"


def _execute(progress: _Progress, step: Step) -> Generator[Step, _Outcome, str]:
    """Yields a step, and records its outcome. Returns the problem if the step failed."""
    outcome = yield step
    if isinstance(outcome, Failed):
        return f"Redis can't be reached: {outcome.reason}"
    if isinstance(outcome, list):
        progress.record(outcome)
    return ""


def _seconds(until: float, now: Clock) -> float:
    return max(0.05, min(STEP_TIMEOUT, until - now()))


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
