"""The protocol state machine of a listener: its cursor, and its reactions to frames and close codes. It does no I/O."""

from __future__ import annotations

import json
import random
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union
from urllib.parse import urlencode, urlsplit

from pydantic import ValidationError

from .audience import topic_problem
from .errors import Refused
from .messages import WSMessage
from .tokens import TokenReason

#: How a client reacts to a close code. docs/protocol.md has the same table.
CLOSES: Dict[int, str] = {
    1000: "never", 1001: "later", 1002: "never", 1003: "never", 1007: "never", 1008: "new token", 1009: "never",
    1011: "later", 1012: "now", 1013: "later", 4000: "now", 4001: "never", 4002: "later", 4003: "never",
}  # fmt: skip

#: Reasons of 1008 that a new token of the same user does not resolve.
FINAL = re.compile(r"(forbidden|origin_not_allowed)\b")
#: Reasons of 1008 that depend on the time, so another attempt may succeed.
PASSING = re.compile(r"token_(expired|not_yet_valid)\b")

#: The minimum pause and its spread at the first attempt, in seconds. The spread doubles with each attempt.
PAUSES: Dict[str, Tuple[float, float]] = {
    "new token": (0, 0.25), "now": (0, 0.25), "lost": (0, 1), "later": (1, 4),
}  # fmt: skip

#: The number of newest event IDs that are stored to drop duplicates.
KNOWN_IDS = 1_000


@dataclass(frozen=True)
class Gap:
    """Events between the last item and the next one are no longer available: reload your data."""

    #: ``expired`` or ``reset``; docs/protocol.md has their causes.
    reason: str
    #: The number of events of the log that were skipped, regardless of their audience, if it is known.
    missed: Optional[int] = None


@dataclass(frozen=True)
class HubError:
    """The hub rejected a message or a topic of this client. The connection stays open."""

    #: The error code: ``forbidden``, ``invalid_topic``, ``too_many_topics``, ``wrong_user``, ...
    error: str
    message: str
    #: The rejected topic, if the error concerns a topic.
    topic: Optional[str] = None
    #: The ``event_id`` or the type of the rejected message, or the ``ack_event_id`` of the first ``ack``.
    ack_event_id: Optional[str] = None

    @property
    def is_about_topic(self) -> bool:
        return self.topic is not None or self.error in ("forbidden", "invalid_topic", "too_many_topics")


#: An item that a listener yields.
Notification = Union[WSMessage, Gap]


@dataclass(frozen=True)
class Received:
    """The result of a received frame."""

    answer: Optional[str] = None
    #: An event or a gap for the application.
    notification: Optional[Notification] = None
    problem: Optional[HubError] = None
    wants_token: bool = False
    #: Why the frame is not a message of a hub. Such a frame is ignored.
    unexpected: str = ""


def verdict(code: int, reason: str) -> str:
    """Returns the reaction to a close: never, now, later, new token, or lost for an unknown code."""
    return "never" if code == 1008 and FINAL.match(reason) else CLOSES.get(code, "lost")


class Client:
    """The protocol state of a client.

    Order of calls: :meth:`opening` before each connect, :meth:`receive` for each frame, :meth:`closed` after each
    connection or failed connect.
    """

    def __init__(
        self,
        url: str,
        topics: Iterable[str],
        *,
        renews: bool = False,
        connection_id: Optional[str] = None,
        last_event_id: Optional[str] = None,
    ):
        self._url, self.topics = _address(url), _topics(topics)
        self.connection_id, self.last_event_id = connection_id, last_event_id
        #: The connection is dead if no frame arrives for this time, in seconds.
        self.silence_timeout = 50.0
        self.live = False
        #: The reason for which the next token is needed.
        self.token_reason: TokenReason = "connect"
        self._renews = renews
        self._known: OrderedDict[str, None] = OrderedDict()
        self._attempts, self._goaway, self._live_since = 0, 0.0, 0.0

    def opening(self, token: str) -> Tuple[str, Dict[str, str]]:
        """Returns the URL and the headers of the next attempt."""
        self.live, self._goaway = False, 0.0
        cursor = {"connection_id": self.connection_id, "last_event_id": self.last_event_id}
        query = {**cursor, "topics": ",".join(self.topics)}
        text = urlencode({name: value for name, value in query.items() if value})
        return f"{self._url}?{text}" if text else self._url, {"Authorization": f"Bearer {token}"}

    def receive(self, text: Union[str, bytes]) -> Received:
        """Handles a frame. Returns what to answer, and what to pass to the application."""
        try:
            frame = json.loads(text)
        except ValueError as error:
            return Received(unexpected=f"it is not JSON: {error}")
        if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
            return Received(unexpected="it is not an object with a type")
        kind, event_id = frame["type"], frame.get("event_id")
        if not isinstance(event_id, str):
            event_id = None
        # Hubs of older versions send no `log_position`.
        position = frame.get("log_position")
        cursor = position if isinstance(position, str) else event_id
        if cursor and not (kind == "ack" and self._precedes_gap(frame)):
            self.last_event_id = cursor
        if kind == "ack":
            self._acknowledged(frame)
        elif kind == "ping":
            return Received(answer=json.dumps({"type": "pong", "event_id": event_id}))
        elif kind == "auth_expiring":
            return Received(wants_token=self._renews)
        elif kind == "goaway":
            self._goaway = _number(frame.get("reconnect_after_ms"), 0) / 1_000
        elif kind == "gap":
            return Received(notification=Gap(str(frame.get("reason", "")), frame.get("missed")))
        elif kind == "error":
            return Received(problem=_problem(frame))
        elif kind != "pong" and self._is_new(event_id):
            return Received(notification=_event(frame))
        return Received()

    def auth(self, token: str) -> str:
        """Returns the message that presents a newer token."""
        return json.dumps({"type": "auth", "token": token})

    def closed(self, code: int, reason: str) -> float:
        """Returns the pause before the next attempt, in seconds. Raises :class:`Refused` if the close is final."""
        reaction = verdict(code, reason)
        if reaction == "never" or (reaction == "new token" and not self._may_renew(reason)):
            raise Refused(code, reason)
        if self.live and time.monotonic() - self._live_since > 10:
            self._attempts = 0
        least, spread = PAUSES[reaction]
        self._attempts += 1
        return self._goaway + least + random.uniform(0, min(30.0, spread * 2.0 ** min(self._attempts - 1, 10)))

    def _may_renew(self, reason: str) -> bool:
        """Returns whether to try another token. A second rejection in a row is final, unless it depends on the time."""
        again = self.token_reason == "refused" and not self.live
        if not self._renews or (again and not PASSING.match(reason)):
            return False
        self.token_reason = "refused"
        return True

    def _precedes_gap(self, frame: Dict[str, Any]) -> bool:
        """Returns whether a `gap` may follow this `ack`.

        The position of the `ack` is after that gap. With that position as the cursor, a client that is disconnected
        between the two would not receive the gap again.
        """
        return not self.live and self.last_event_id is not None and frame.get("resumed") is False

    def _acknowledged(self, frame: Dict[str, Any]) -> None:
        if self.live:
            return
        self.live, self._live_since, self.token_reason = True, time.monotonic(), "connect"
        self.connection_id = frame.get("connection_id", self.connection_id)
        self.silence_timeout = 1.5 * _number(frame.get("heartbeat"), 30) + 5

    def _is_new(self, event_id: Any) -> bool:
        if not event_id:
            return True
        if event_id in self._known:
            return False
        self._known[event_id] = None
        if len(self._known) > KNOWN_IDS:
            self._known.popitem(last=False)
        return True


def _address(url: str) -> str:
    parsed = urlsplit(url)
    if parsed.scheme not in ("ws", "wss", "http", "https") or not parsed.hostname:
        raise ValueError("the hub's URL is not valid: expected wss://HOST[:PORT][/PATH] (ws, https, http)")
    if parsed.query or parsed.fragment:
        raise ValueError("the hub's URL has a query: pass token, topics and last_event_id as arguments")
    base = url.rstrip("/").replace("http", "ws", 1) if parsed.scheme.startswith("http") else url.rstrip("/")
    return base if base.endswith("/ws") else f"{base}/ws"


def _topics(topics: Iterable[str]) -> List[str]:
    if isinstance(topics, str):
        raise ValueError(f"topics must be a list: write topics=[{topics!r}]")
    found = list(topics)
    for topic in found:
        problem = topic_problem(topic)
        if problem:
            raise ValueError(problem)
    return found


def _problem(frame: Dict[str, Any]) -> HubError:
    details = frame.get("details")
    message = details.get("message") if isinstance(details, dict) else details
    return HubError(
        str(frame.get("error", "error")), str(message or ""), frame.get("topic"), frame.get("ack_event_id")
    )


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) else default


def _event(frame: Dict[str, Any]) -> WSMessage:
    try:
        return WSMessage.model_validate(frame)
    except ValidationError:
        # `data` can be any JSON value. An event that the model does not accept is passed on unchanged.
        known = {name: frame[name] for name in WSMessage.model_fields if name in frame}
        event = WSMessage.model_construct(**known)
        # Not passed as arguments, because a field may have the name of a parameter of the constructor.
        event.__pydantic_extra__ = {name: value for name, value in frame.items() if name not in known}
        return event
