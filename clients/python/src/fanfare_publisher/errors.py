"""What can go wrong while publishing or listening."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Sequence

if TYPE_CHECKING:
    from .steps import Published


class PublishError(Exception):
    """An event was not published. Every failure of a publish is one of these, whatever library it came from.

    ``code`` is the hub's word for the reason (``invalid``, ``forbidden``, ...) and ``status`` its HTTP status, if it gave one.
    With ``may_be_published`` the event may be in the log all the same: publish it again, with the same ``event_id``.
    Of several events ``index`` is the one that failed, and ``published`` are those before it that are in the log.
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
    """The publisher's URL or token can't be used, or there is none."""


class InvalidEvent(PublishError, ValueError):
    """The event can't be sent: it is not a message, or not JSON. Nothing was sent."""


class InvalidAudience(InvalidEvent):
    """The audience is not valid. Nothing was sent."""


class EventRejected(PublishError):
    """The hub rejected the event: it is invalid or too large. The same event is rejected again."""


class NotAuthorized(PublishError):
    """The token, the access key or Redis' password is not accepted, or does not allow to publish."""


class UnexpectedAnswer(PublishError):
    """The answer is not a fanfare hub's: check the URL, and what is between."""


class Unavailable(PublishError):
    """The hub or Redis could not be reached, or did not accept the event in time. A later attempt may succeed."""


class Refused(Exception):
    """The hub closed a listener's connection for a reason that a new attempt does not change."""

    def __init__(self, code: int, reason: str):
        super().__init__(f"{reason or 'the hub closed the connection'} (close code {code})")
        self.code, self.reason = code, reason

    def __reduce__(self) -> Any:
        """Made again from its arguments: a pool of processes waits for ever for an exception that it can't unpickle."""
        return type(self), (self.code, self.reason)


class TopicRefused(Exception):
    """The hub rejected one of a listener's topics, most often because the token does not allow it."""

    def __init__(self, error: str, message: str, topic: Optional[str]):
        super().__init__(f"the topic {topic!r} was rejected: {message} ({error})" if topic else f"{message} ({error})")
        self.error, self.message, self.topic = error, message, topic

    def __reduce__(self) -> Any:
        """As for :class:`Refused`."""
        return type(self), (self.error, self.message, self.topic)
