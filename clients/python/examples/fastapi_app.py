"""An application of three endpoints that publish to a fanfare hub.

    pip install fanfare-publisher fastapi uvicorn
    REDIS_URL=redis://127.0.0.1:6379 uvicorn fastapi_app:app

For a hub without Redis, set FANFARE_URL=http://127.0.0.1:8000 and FANFARE_TOKEN=... instead of REDIS_URL.
"""

import logging
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from fanfare_publisher import (
    AgentActivityUpdate,
    CalendarEventCreated,
    EventRejected,
    InvalidEvent,
    PublishError,
    TaskStatusUpdate,
    Unavailable,
    redis_pubsub,
)

log = logging.getLogger("uvicorn.error")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await redis_pubsub.initialize()
    yield
    await redis_pubsub.close()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(PublishError)
async def not_published(_: Request, error: PublishError) -> JSONResponse:
    if isinstance(error, Unavailable):
        return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})
    if isinstance(error, (EventRejected, InvalidEvent)):
        return JSONResponse({"detail": str(error), "code": error.code}, status_code=422)
    # The application's configuration is wrong (its token or URL). The details are not for its users.
    log.error("not published: %s", error)
    return JSONResponse({"detail": "the event could not be published"}, status_code=500)


@app.post("/tasks/{task_id}/status")
async def update_task(task_id: str, data: Dict[str, Any]) -> Dict[str, Any]:
    if "status" not in data:
        raise HTTPException(422, "the field status is missing")
    published = await redis_pubsub.publish_broadcast(TaskStatusUpdate(data={**data, "task_id": task_id}))
    return {"event_id": published.event_id, "sequence": published.sequence}


@app.post("/users/{user_id}/agents/{agent_id}/activity")
async def update_agent(user_id: str, agent_id: str, data: Dict[str, Any]) -> Dict[str, Any]:
    message = AgentActivityUpdate(data={**data, "agent_id": agent_id})
    published = await redis_pubsub.publish_to_user(user_id, message)
    return {"event_id": published.event_id, "sequence": published.sequence}


@app.post("/calendar/{connection_id}/events")
async def create_event(connection_id: str, data: Dict[str, Any]) -> Dict[str, Any]:
    published = await redis_pubsub.publish_to_connection(connection_id, CalendarEventCreated(data=data))
    return {"event_id": published.event_id, "sequence": published.sequence}
