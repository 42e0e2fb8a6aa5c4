"""Publishes events to a fanfare hub, over Redis or HTTP, and listens to them.

In the place of the FastAPI hub's own module: ``from fanfare_publisher import redis_pubsub, TaskStatusUpdate``.
"""

from .errors import PublishError, Refused
from .listener import Gap, Listener, SyncListener
from .messages import (
    AgentActivityUpdate,
    CalendarEventCreated,
    MessageType,
    TaskStatusUpdate,
    WSMessage,
)
from .publisher import AsyncPublisher, Published, Publisher, RedisPubSub, redis_pubsub

__all__ = [
    "AgentActivityUpdate",
    "AsyncPublisher",
    "CalendarEventCreated",
    "Gap",
    "Listener",
    "MessageType",
    "PublishError",
    "Published",
    "Publisher",
    "RedisPubSub",
    "Refused",
    "SyncListener",
    "TaskStatusUpdate",
    "WSMessage",
    "redis_pubsub",
]
