"""What can go wrong, for whoever publishes or listens."""

from __future__ import annotations

from typing import Optional


class PublishError(Exception):
    """An event was not taken. ``status`` is the hub's HTTP status, if it answered; ``error`` its word for the reason.

    With ``may_be_published`` the event may have been taken all the same: publish it again, with the same ``event_id``.
    """

    def __init__(self, message: str, *, status: Optional[int] = None, error: str = "", may_be_published: bool = False):
        super().__init__(message)
        self.status, self.error, self.may_be_published = status, error, may_be_published


class Refused(Exception):
    """The hub closed a listener's connection for a reason that trying again does not mend."""

    def __init__(self, code: int, reason: str):
        super().__init__(f"{reason or 'the hub closed the connection'} (close code {code})")
        self.code, self.reason = code, reason
