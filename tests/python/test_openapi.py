"""The OpenAPI description, used like a generated client uses it: requests are built only from the document."""

import json
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import pytest
from hub import PUBLISHER, token


def resolve(spec: dict, schema: dict) -> dict:
    while "$ref" in schema:
        here = spec
        for part in schema["$ref"].removeprefix("#/").split("/"):
            here = here[part]
        schema = here
    return schema


def sample(spec: dict, schema: dict):
    """Returns a value of a schema: its example, or the required fields."""
    schema = resolve(spec, schema)
    if "example" in schema:
        return schema["example"]
    if schema.get("examples"):
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    if "oneOf" in schema:
        return sample(spec, schema["oneOf"][0])
    if schema.get("type") == "object" or "properties" in schema:
        return {name: sample(spec, schema["properties"][name]) for name in schema.get("required", [])}
    return {"string": "a", "number": 1, "array": []}[schema["type"]]


@pytest.fixture(scope="module")
def spec(hub):
    return hub.get("/openapi.json").json()


def call(hub, spec: dict, operation_id: str, body) -> dict:
    """Calls an operation like a generated client, with a token that may publish."""
    found = [
        (path, method, operation)
        for path, item in spec["paths"].items()
        for method, operation in item.items()
        if operation["operationId"] == operation_id
    ]
    [(path, method, operation)] = found
    base = urljoin(f"http://{hub.address}/openapi.json", spec["servers"][0]["url"])
    headers = {"Content-Type": "application/json"}
    [scheme] = operation["security"][0]
    assert spec["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    headers["Authorization"] = f"Bearer {token('publisher', **PUBLISHER)}"
    url = base.rstrip("/") + path
    request = Request(url, json.dumps(body).encode(), headers, method=method.upper())
    with urlopen(request, timeout=30) as answer:
        assert str(answer.status) in operation["responses"]
        return json.load(answer)


def test_a_client_generated_from_the_description_publishes(hub, spec):
    [content] = spec["paths"]["/events"]["post"]["requestBody"]["content"].values()
    event = {**sample(spec, content["schema"]), "event_id": "generated"}
    assert "audience" in event, "audience is required"
    with hub.client("alice") as client:
        assert call(hub, spec, "publish", event)["event_id"] == "generated"
        batch = call(hub, spec, "publish_batch", [{**event, "event_id": "generated-2"}])
        assert batch["results"][0]["duplicate"] is False
        hub.publish("generated-end")
        assert client.ids_until("generated-end")[-3:] == ["generated", "generated-2", "generated-end"]


def test_every_operation_declares_its_security(spec):
    ids = [operation["operationId"] for item in spec["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            assert operation.get("security"), f"{method} {path}"
    assert spec["servers"]
