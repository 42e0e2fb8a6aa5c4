"""Publishes events to a fanfare hub, over Redis or HTTP, and listens to events.

``from fanfare_publisher import redis_pubsub, TaskStatusUpdate`` replaces the publishing module of the FastAPI hub.
Messages are logged under ``fanfare_publisher``.
"""

from .audience import EVERYONE, Audience, ToConnection, ToTopic, ToUser, to_connection, to_topic, to_user
from .client import Gap, HubError
from .errors import (
    ConfigurationError,
    EventRejected,
    InvalidAudience,
    InvalidEvent,
    NotAuthorized,
    PublishError,
    Refused,
    TopicRefused,
    Unavailable,
    UnexpectedAnswer,
)
from .listener import Listener
from .messages import (
    AgentActivityUpdate,
    CalendarEventCreated,
    MessageType,
    TaskStatusUpdate,
    WSMessage,
)
from .publisher import AsyncPublisher, Published, Publisher, RedisPubSub, redis_pubsub
from .sync_listener import SyncListener
from .tokens import TokenReason

__all__ = [
    "AgentActivityUpdate",
    "AsyncPublisher",
    "Audience",
    "CalendarEventCreated",
    "ConfigurationError",
    "EVERYONE",
    "EventRejected",
    "Gap",
    "HubError",
    "InvalidAudience",
    "InvalidEvent",
    "Listener",
    "MessageType",
    "NotAuthorized",
    "PublishError",
    "Published",
    "Publisher",
    "RedisPubSub",
    "Refused",
    "SyncListener",
    "TaskStatusUpdate",
    "ToConnection",
    "ToTopic",
    "ToUser",
    "TokenReason",
    "TopicRefused",
    "Unavailable",
    "UnexpectedAnswer",
    "WSMessage",
    "redis_pubsub",
    "to_connection",
    "to_topic",
    "to_user",
]
