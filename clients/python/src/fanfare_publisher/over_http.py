"""Publishing over the hub's HTTP API, as steps."""

from __future__ import annotations

import email.utils
import json
import logging
import time
from http import HTTPStatus
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Type

from .errors import EventRejected, NotAuthorized, PublishError, Unavailable, UnexpectedAnswer
from .steps import ATTEMPT, Failed, Outgoing, Post, Published, Wait, Way, parsed, pause

log = logging.getLogger(__name__)

#: The most events in one request, and the most bytes: well below the hub's limits and those of proxies.
BATCH_EVENTS = 500
BATCH_BYTES = 512 * 1024

Clock = Callable[[], float]


def publish(event: Outgoing, where: str, deadline: float, now: Clock) -> Way[Published]:
    """Posts one event until the hub has it."""
    answer = yield from _post("/events", _body(event), where, deadline, now)
    return _published(answer, event, where)


def publish_many(events: List[Outgoing], where: str, patience: float, now: Clock) -> Way[List[Published]]:
    """Posts events in batches, in their order. Each batch has the whole patience."""
    done: List[Published] = []
    for batch in _batches(events):
        try:
            done += yield from _publish_batch(batch, where, patience, now)
        except PublishError as error:
            done += error.published
            error.published = done
            _renumber(error, len(done))
            raise
    return done


def _publish_batch(batch: List[Outgoing], where: str, patience: float, now: Clock) -> Way[List[Published]]:
    body = f'{{"events":[{",".join(_body(event) for event in batch)}]}}'
    try:
        answer = yield from _post("/events/batch", body, where, now() + patience, now)
    except PublishError as error:
        if not (error.status == 413 and error.index is None and len(batch) > 1):
            raise
    else:
        results = answer.get("results")
        if not isinstance(results, list) or len(results) != len(batch):
            raise _not_a_hub(where, "an answer without the batch's results")
        return [_published(result, event, where) for result, event in zip(results, batch)]
    half = len(batch) // 2
    first = yield from _publish_batch(batch[:half], where, patience, now)
    try:
        return first + (yield from _publish_batch(batch[half:], where, patience, now))
    except PublishError as error:
        error.published = [*first, *error.published]
        raise


def _renumber(error: PublishError, before: int) -> None:
    """The hub counts within a request, the caller within all of its events."""
    if error.index is not None:
        error.args = (str(error).replace(f"events[{error.index}]", f"events[{before + error.index}]", 1),)
    # In a batch all are published or none, so the first one that is not is the first of this batch.
    error.index = before + (error.index or 0)


def _batches(events: List[Outgoing]) -> List[List[Outgoing]]:
    batches: List[List[Outgoing]] = []
    size = 0
    for event in events:
        length = len(event.text.encode())
        if not batches or len(batches[-1]) >= BATCH_EVENTS or size + length > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(event)
        size += length
    return batches


def _body(event: Outgoing) -> str:
    fields = event.text.rstrip()
    return f'{fields[:-1]},"audience":{json.dumps(event.target.value)}}}'


def _post(path: str, body: str, where: str, deadline: float, now: Clock) -> Way[Dict[str, Any]]:
    """Posts until there is an answer that stays the same. The same ``event_id`` each time, so that it is published once."""
    attempt, uncertain = 0, False
    answered: Optional[PublishError] = None
    while True:
        left = deadline - now()
        outcome = yield Post(path, body, max(0.01, min(ATTEMPT, left)))
        after = 0.0
        if isinstance(outcome, Failed):
            error: PublishError = Unavailable(f"the hub can't be reached at {where}: {outcome.reason}")
            uncertain = uncertain or outcome.sent
            if answered and left < ATTEMPT:
                # The last attempt had little time; what was answered before says more.
                error = answered
        else:
            status, headers, text = outcome
            if status in (200, 201):
                return _success(text, headers, where)
            error, after = _error(status, headers, text, where), _retry_after(headers)
            answered = error
            # 429 is answered before anything is published.
            uncertain = uncertain or status >= 500 or status == 408
        error.may_be_published = uncertain
        wait = pause(attempt, after)
        if not isinstance(error, Unavailable) or now() + wait >= deadline:
            raise error
        attempt += 1
        log.log(logging.WARNING if attempt == 1 else logging.INFO, "%s; trying again in %.1f s", error, wait)
        yield Wait(wait)


def _success(text: str, headers: Mapping[str, str], where: str) -> Dict[str, Any]:
    answer = parsed(text)
    if not answer:
        raise _not_a_hub(where, f"200 with {_kind(headers)}")
    return answer


def _published(answer: Any, event: Outgoing, where: str) -> Published:
    try:
        event_id, position, duplicate = answer["event_id"], answer["position"], answer["duplicate"]
        sequence = int(position.rsplit("-", 1)[1])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise _not_a_hub(where, "an answer without the event's place in the log") from None
    if event_id != event.event_id:
        raise _not_a_hub(where, "the answer to another request")
    return Published(event_id, sequence, bool(duplicate), position)


def _not_a_hub(where: str, what: str) -> PublishError:
    message = f"unexpected answer from {where}: {what}, and not a fanfare hub's; check the URL and the proxies before the hub"
    return UnexpectedAnswer(message, may_be_published=True)


def _error(status: int, headers: Mapping[str, str], text: str, where: str) -> PublishError:
    answer = parsed(text)
    code, detail = answer.get("code"), answer.get("detail")
    if isinstance(code, str) and detail:
        index = answer.get("index")
        index = index if isinstance(index, int) else None
        return _type(status, True)(f"the hub answered {status}: {detail}", status=status, code=code, index=index)
    if 300 <= status < 400:
        what = f"a redirect ({status}) to {headers.get('location')}; use the URL that answers itself"
    else:
        what = f"{status} {_phrase(status)} with {_kind(headers)}, which is not a fanfare hub's; check the URL and the proxies before the hub"
    return _type(status, False)(f"unexpected answer from {where}: {what}", status=status)


def _type(status: int, from_hub: bool) -> Type[PublishError]:
    if status >= 500 or status in (408, 425, 429):
        return Unavailable
    if status in (401, 403):
        return NotAuthorized
    return EventRejected if from_hub and status in (400, 413, 415, 422) else UnexpectedAnswer


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type") or "no content type"


def _retry_after(headers: Mapping[str, str]) -> float:
    """The seconds to wait: `Retry-After` has a number or a date (RFC 9110 section 10.2.3)."""
    text = headers.get("retry-after") or ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, IndexError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else 0.0


Answer = Tuple[int, Mapping[str, str], str]
