"""The steps of a publish over the hub's HTTP API."""

from __future__ import annotations

import email.utils
import json
import logging
import time
from http import HTTPStatus
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Type

from .errors import EventRejected, NotAuthorized, PublishError, Unavailable, UnexpectedAnswer
from .published import Published
from .steps import STEP_TIMEOUT, Failed, Outgoing, Post, Wait, Steps, parsed, pause

log = logging.getLogger(__name__)

#: The maximum number of events and of bytes in one request, well below the limits of the hub and of proxies.
BATCH_EVENTS = 500
BATCH_BYTES = 512 * 1024

_CHECK = "check the URL and the proxies before the hub"

Clock = Callable[[], float]


def publish(event: Outgoing, where: str, deadline: float, now: Clock) -> Steps[Published]:
    """Posts an event until the hub has accepted or rejected it."""
    response = yield from _post("/events", _body(event), where, deadline, now)
    return _published(response, event, where)


def publish_many(events: List[Outgoing], where: str, patience: float, now: Clock) -> Steps[List[Published]]:
    """Posts events in batches, in their order. ``patience`` applies to each batch."""
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


def _publish_batch(batch: List[Outgoing], where: str, patience: float, now: Clock) -> Steps[List[Published]]:
    body = f'{{"events":[{",".join(_body(event) for event in batch)}]}}'
    try:
        response = yield from _post("/events/batch", body, where, now() + patience, now)
    except PublishError as error:
        if not (error.status == 413 and error.index is None and len(batch) > 1):
            raise
    else:
        results = response.get("results")
        if not isinstance(results, list) or len(results) != len(batch):
            raise _not_a_hub(where, "a response without the results of the batch")
        return [_published(result, event, where) for result, event in zip(results, batch)]
    half = len(batch) // 2
    first = yield from _publish_batch(batch[:half], where, patience, now)
    try:
        return first + (yield from _publish_batch(batch[half:], where, patience, now))
    except PublishError as error:
        error.published = [*first, *error.published]
        raise


def _renumber(error: PublishError, before: int) -> None:
    """Converts the index, which the hub counts within a request, to an index of all events of the caller."""
    if error.index is not None:
        error.args = (str(error).replace(f"events[{error.index}]", f"events[{before + error.index}]", 1),)
    # The hub publishes all events of a batch or none, so the first unpublished event is the first of the batch.
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


def _post(path: str, body: str, where: str, deadline: float, now: Clock) -> Steps[Dict[str, Any]]:
    """Posts until the response is final. Each attempt has the same ``event_id``, so the event is published once."""
    attempt, uncertain = 0, False
    response_error: Optional[PublishError] = None
    while True:
        left = deadline - now()
        outcome = yield Post(path, body, max(0.01, min(STEP_TIMEOUT, left)))
        after = 0.0
        if isinstance(outcome, Failed):
            error: PublishError = Unavailable(f"the hub at {where} can't be reached: {outcome.reason}")
            uncertain = uncertain or outcome.sent
            if response_error and left < STEP_TIMEOUT:
                # The last attempt was cut short by the deadline, so an earlier response is more informative.
                error = response_error
        else:
            status, headers, text = outcome
            if status in (200, 201):
                return _success(text, headers, where)
            error, after = _error(status, headers, text, where), _retry_after(headers)
            response_error = error
            # A hub that responds with 429 has published nothing.
            uncertain = uncertain or status >= 500 or status == 408
        error.may_be_published = uncertain
        wait = pause(attempt, after)
        if not isinstance(error, Unavailable) or now() + wait >= deadline:
            raise error
        attempt += 1
        log.log(logging.WARNING if attempt == 1 else logging.INFO, "%s; retrying in %.1f s", error, wait)
        yield Wait(wait)


def _success(text: str, headers: Mapping[str, str], where: str) -> Dict[str, Any]:
    response = parsed(text)
    if not response:
        raise _not_a_hub(where, f"200 with {_kind(headers)}")
    return response


def _published(response: Any, event: Outgoing, where: str) -> Published:
    try:
        event_id, position, duplicate = response["event_id"], response["position"], response["duplicate"]
        sequence = int(position.rsplit("-", 1)[1])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise _not_a_hub(where, "a response without the event's position in the log") from None
    if event_id != event.event_id:
        raise _not_a_hub(where, "the response to another request")
    return Published(event_id, sequence, bool(duplicate), position)


def _not_a_hub(where: str, what: str) -> PublishError:
    message = f"unexpected response from {where}: {what}: not a fanfare hub"
    return UnexpectedAnswer(f"{message}; {_CHECK}", may_be_published=True)


def _error(status: int, headers: Mapping[str, str], text: str, where: str) -> PublishError:
    response = parsed(text)
    code, detail = response.get("code"), response.get("detail")
    if isinstance(code, str) and detail:
        index = response.get("index")
        index = index if isinstance(index, int) else None
        return _type(status, True)(f"the hub responded with {status}: {detail}", status=status, code=code, index=index)
    if 300 <= status < 400:
        what = f"a redirect ({status}) to {headers.get('location')}; use the URL that it leads to"
    else:
        what = f"{status} {_phrase(status)} with {_kind(headers)}: not a fanfare hub; {_CHECK}"
    return _type(status, False)(f"unexpected response from {where}: {what}", status=status)


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
    """Returns the seconds to wait. `Retry-After` is a number or a date (RFC 9110 section 10.2.3)."""
    text = headers.get("retry-after") or ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, IndexError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else 0.0


Response = Tuple[int, Mapping[str, str], str]
