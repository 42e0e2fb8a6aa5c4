"""The exceptions of publishers and listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Sequence

if TYPE_CHECKING:
    from .published import Published


class PublishError(Exception):
    """An event was not published. Every failure of a publish is a subclass of this exception.

    ``code`` is the hub's error code (``invalid``, ``forbidden``, ...), and ``status`` the HTTP status of the response;
    both are empty if the hub did not respond.
    If ``may_be_published`` is set, the event may nevertheless be in the log: publish it again, with the same
    ``event_id``.
    For several events, ``index`` is the event that failed, and ``published`` has the events that are in the log.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        code: str = "",
        may_be_published: bool = False,
        index: Optional[int] = None,
    ):
        super().__init__(message)
        self.status, self.code, self.may_be_published, self.index = status, code, may_be_published, index
        self.published: Sequence[Published] = ()


class ConfigurationError(PublishError, ValueError):
    """The publisher's URL or token is missing or not valid."""


class InvalidEvent(PublishError, ValueError):
    """The event is not a valid message, or cannot be written as JSON. Nothing was sent."""


class InvalidAudience(InvalidEvent):
    """The audience is not valid. Nothing was sent."""


class EventRejected(PublishError):
    """The hub rejected the event because it is invalid or too large. A retry would be rejected too."""


class NotAuthorized(PublishError):
    """The token, the access key or the Redis password was rejected, or does not allow publishing."""


class UnexpectedAnswer(PublishError):
    """The response is not from a fanfare hub. Check the URL, and the proxies before the hub."""


class Unavailable(PublishError):
    """The hub or Redis could not be reached, or did not accept the event in time. A later publish may succeed."""


class Refused(Exception):
    """The hub closed a listener's connection, and another attempt would fail in the same way."""

    def __init__(self, code: int, reason: str):
        super().__init__(f"{reason or 'the hub closed the connection'} (close code {code})")
        self.code, self.reason = code, reason

    def __reduce__(self) -> Any:
        """Pickles the arguments: a process pool hangs on an exception that it cannot unpickle."""
        return type(self), (self.code, self.reason)


class TopicRefused(Exception):
    """The hub rejected a topic of a listener, most often because the token does not allow it."""

    def __init__(self, error: str, message: str, topic: Optional[str]):
        super().__init__(f"the topic {topic!r} was rejected: {message} ({error})" if topic else f"{message} ({error})")
        self.error, self.message, self.topic = error, message, topic

    def __reduce__(self) -> Any:
        """See :class:`Refused`."""
        return type(self), (self.error, self.message, self.topic)
