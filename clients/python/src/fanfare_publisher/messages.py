"""The messages to publish, with the names and fields of the FastAPI hub's messages."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Dict, Union

from pydantic import BaseModel, ConfigDict, Field, field_validator


class MessageType(str, Enum):
    """Well-known types. Other types are allowed."""

    TASK_STATUS_UPDATE = "task_status_update"
    AGENT_ACTIVITY_UPDATE = "agent_activity_update"
    CALENDAR_EVENT_CREATED = "calendar_event_created"
    PING = "ping"
    PONG = "pong"
    ERROR = "error"
    ACK = "ack"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def is_absent(event_id: str) -> bool:
    """Returns whether the hub treats the ``event_id`` as absent."""
    return event_id.strip() in ("", "null", "undefined", "NaN", "None")


class WSMessage(BaseModel):
    """An event of any type. Further fields are passed on unchanged."""

    model_config = ConfigDict(use_enum_values=True, extra="allow", validate_default=True)

    type: Union[MessageType, str]
    event_id: str = Field(default_factory=lambda: str(uuid.uuid4()))
    timestamp: Union[datetime, str] = Field(default_factory=_now, union_mode="left_to_right")
    data: Dict[str, Any] = Field(default_factory=dict)

    @field_validator("event_id")
    @classmethod
    def _not_absent(cls, event_id: str) -> str:
        """Generates an ID for an absent one, so that the publisher knows the ID under which the event is in the log."""
        return str(uuid.uuid4()) if is_absent(event_id) else event_id


class TaskStatusUpdate(WSMessage):
    """The status of a task: ``task_id``, ``status``, ``progress`` and more in ``data``."""

    type: Union[MessageType, str] = MessageType.TASK_STATUS_UPDATE
    data: Dict[str, Any]


class AgentActivityUpdate(WSMessage):
    """The activity of an agent: ``agent_id``, ``action``, ``status`` and more in ``data``."""

    type: Union[MessageType, str] = MessageType.AGENT_ACTIVITY_UPDATE
    data: Dict[str, Any]


class CalendarEventCreated(WSMessage):
    """A new entry in a calendar: ``event_id``, ``title``, ``start_time`` and more in ``data``."""

    type: Union[MessageType, str] = MessageType.CALENDAR_EVENT_CREATED
    data: Dict[str, Any]
