"""What a publish returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Published:
    """An event that is in the log."""

    event_id: str
    #: The position in the log as a number. It ascends from event to event.
    sequence: int
    #: An event with this ``event_id`` was in the log already. The fields are those of that event.
    duplicate: bool
    #: The position as a cursor (``pos-EPOCH-SEQUENCE``). Only set over HTTP.
    position: Optional[str] = None
