"""Connecting: the first ack, and the rejection of invalid tokens and requests."""

import re
import time

import pytest
from hub import DEADLINE, Client, sign, token
from websockets.exceptions import InvalidStatus

POSITION = re.compile(r"pos-[0-9a-f]+-\d+")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def test_the_first_frame_is_an_ack_with_all_its_fields(hub):
    with hub.client() as client:
        assert list(client.ack) == [
            "type", "event_id", "timestamp", "ack_event_id", "connection_id", "resumed", "replayed", "heartbeat",
        ]  # fmt: skip
        assert POSITION.fullmatch(client.ack["event_id"])
        assert TIMESTAMP.fullmatch(client.ack["timestamp"])
        assert UUID.fullmatch(client.ack["connection_id"])
        assert client.ack["ack_event_id"] == "initial_connect"
        assert (client.ack["resumed"], client.ack["replayed"], client.ack["heartbeat"]) == (False, 0, 30)


def test_a_token_is_accepted_in_query_header_or_subprotocol(hub):
    ways = {
        "query": (hub.url(token=token()), {}, None),
        "header": (hub.url(), {"additional_headers": {"Authorization": f"Bearer {token()}"}}, None),
        "header in lower case": (hub.url(), {"additional_headers": {"authorization": f"bearer {token()}"}}, None),
        "subprotocol": (hub.url(), {"subprotocols": ["fanfare", f"bearer.{token()}"]}, "fanfare"),
        "subprotocol in reverse order": (hub.url(), {"subprotocols": [f"bearer.{token()}", "fanfare"]}, "fanfare"),
    }
    for way, (url, options, selected) in ways.items():
        with Client(url, **options) as client:
            assert client.next()["type"] == "ack", way
            assert client.socket.subprotocol == selected, way


def test_a_token_needs_only_a_subject(hub):
    with Client(hub.url(token=sign({"sub": "alice"}))) as client:
        assert client.next()["type"] == "ack"


def now(offset: int) -> int:
    return int(time.time()) + offset


def valid() -> dict:
    """Returns claims that are valid for a minute."""
    return {"sub": "a", "exp": now(60)}


def tampered() -> str:
    """Returns a token with the payload of another user."""
    head, _, signature = token().split(".")
    return ".".join([head, token("eve").split(".")[1], signature])


REJECTED = {
    "no token": (lambda: None, "token_missing"),
    "expired": (lambda: token(exp=now(-3600)), "token_expired"),
    "not yet valid": (lambda: token(nbf=now(3600)), "token_not_yet_valid"),
    "another secret": (lambda: sign(valid(), secret="another secret of the same length"), "token_invalid"),
    "alg none": (lambda: sign(valid(), header={"alg": "none", "typ": "JWT"}), "token_invalid"),
    "another algorithm": (lambda: sign(valid(), header={"alg": "HS512", "typ": "JWT"}), "token_invalid"),
    "no subject": (lambda: sign({"exp": now(60)}), "token_invalid"),
    "an empty subject": (lambda: token(""), "token_invalid"),
    "a subject that is a list": (lambda: token(["alice"]), "token_invalid"),
    "a tampered payload": (lambda: tampered(), "token_invalid"),
    "two parts": (lambda: token().rsplit(".", 1)[0], "token_invalid"),
    "not a token": (lambda: "rubbish", "token_invalid"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
@pytest.mark.parametrize("way", ["query", "header", "subprotocol"])
def test_a_bad_token_is_upgraded_and_then_closed_with_a_reason(hub, case, way):
    make, reason = REJECTED[case]
    made = make()
    query = {} if made is None or way != "query" else {"token": made}
    options = {}
    if made is not None and way == "header":
        options["additional_headers"] = {"Authorization": f"Bearer {made}"}
    if way == "subprotocol":
        options["subprotocols"] = ["fanfare"] + ([] if made is None else [f"bearer.{made}"])
    with Client(hub.url(**query), **options) as client:
        code, said = client.closed()
        assert code == 1008
        assert said.startswith(reason), said
        assert len(said.encode()) <= 123
    assert made is None or hub.request("POST", "/events", {"type": "note"}, bearer=made).json()["code"] == reason


def test_a_request_without_an_upgrade_is_answered_with_426(hub):
    answer = hub.get(f"/ws?token={token()}")
    assert answer.status == 426
    assert answer.headers["Upgrade"].lower() == "websocket"
    assert "WebSocket" in answer.json()["detail"]
    for wrong, status in [({"Sec_WebSocket_Version": "12"}, 426), ({"Sec_WebSocket_Key": "short"}, 400)]:
        headers = {
            "Connection": "Upgrade", "Upgrade": "websocket",
            "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", **wrong,
        }  # fmt: skip
        # `urllib` always sends `Connection: close`, so this request uses `http.client`.
        assert raw_upgrade(hub, headers) == status, wrong
    with pytest.raises(InvalidStatus) as refused:
        Client(hub.url().replace("/ws", "/wss"))
    assert refused.value.response.status_code == 404


def raw_upgrade(hub, headers) -> int:
    import http.client

    connection = http.client.HTTPConnection(hub.address, timeout=DEADLINE)
    connection.request("GET", "/ws", headers={name.replace("_", "-"): value for name, value in headers.items()})
    status = connection.getresponse().status
    connection.close()
    return status
