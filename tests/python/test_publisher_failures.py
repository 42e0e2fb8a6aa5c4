"""The publishers of the Python package under failures: every error is a PublishError, and deadlines are met."""

import asyncio
import email.utils
import json
import logging
import threading
import time

import pytest
import redis
from fanfare_publisher import (
    AsyncPublisher,
    ConfigurationError,
    NotAuthorized,
    Publisher,
    PublishError,
    RedisPubSub,
    Unavailable,
    UnexpectedAnswer,
    WSMessage,
    over_http,
)
from fanfare_publisher.steps import Failed, Wait
from hub import PUBLISHER, Hub, token, until
from proxy import answering, silent
from redis_server import RedisServer

KEY = token("publisher", **PUBLISHER)
PAGE = "<html><body><h1>Bad Gateway</h1></body></html>"
NOTE = WSMessage(type="note", event_id="e-1")
ACCEPTED = json.dumps({"event_id": "e-1", "position": "pos-ab-7", "duplicate": False})


def publish(url: str, message: WSMessage = NOTE, patience: float = 1.0, **options):
    with Publisher(url, patience=patience, **options) as publisher:
        return publisher.publish(message, "everyone")


def publish_with_asyncio(url: str, message: WSMessage = NOTE, patience: float = 1.0, **options):
    async def run():
        async with AsyncPublisher(url, patience=patience, **options) as publisher:
            return await publisher.publish(message, "everyone")

    return asyncio.run(run())


both = pytest.mark.parametrize("publish", [publish, publish_with_asyncio], ids=["without asyncio", "with asyncio"])

HTML = {"Content_Type": "text/html"}

RESPONSES = {
    "a proxy's page with 502": (502, PAGE, HTML, Unavailable, "502 Bad Gateway with text/html"),
    "a proxy's page with 404": (404, PAGE, HTML, UnexpectedAnswer, "404 Not Found with text/html"),
    "a proxy's page with 403": (403, PAGE, HTML, NotAuthorized, "403 Forbidden"),
    "a page with 200": (200, PAGE, HTML, UnexpectedAnswer, "200 with text/html"),
    "an empty response": (200, "", {}, UnexpectedAnswer, "200"),
    "JSON without the fields": (201, "{}", {}, UnexpectedAnswer, "check the URL"),
    "JSON of another shape": (201, '{"event_id":"e-1","position":7}', {}, UnexpectedAnswer, "position in the log"),
    "JSON that is not an object": (201, "[]", {}, UnexpectedAnswer, "check the URL"),
    "the response to another event": (201, ACCEPTED.replace("e-1", "e-2"), {}, UnexpectedAnswer, "another request"),
    "a redirect": (307, "", {"Location": "https://elsewhere"}, UnexpectedAnswer, "redirect .307. to https://elsewhere"),
    "a status without a name": (599, "", {}, Unavailable, "599"),
    "an error of another API": (422, '{"detail":[{"msg":"x"}]}', {}, UnexpectedAnswer, "422"),
}


@both
@pytest.mark.parametrize(("status", "body", "headers", "kind", "says"), RESPONSES.values(), ids=RESPONSES.keys())
def test_every_unexpected_response_is_a_publish_error(publish, status, body, headers, kind, says):
    with answering(status, body, **headers) as (url, _):
        with pytest.raises(kind, match=says) as failed:
            publish(url, token=KEY)
    assert failed.value.status in (status, None)
    assert "<html>" not in str(failed.value)


def test_an_earlier_response_is_reported_if_the_last_attempt_was_cut_short():
    time_left = iter([1.0, 0.9, 0.02, 0.0])
    way = over_http._post("/events", "{}", "http://hub", 1.0, lambda: 1.0 - next(time_left))
    next(way)
    assert isinstance(way.send((502, {"content-type": "text/html"}, PAGE)), Wait)
    assert way.send(None).seconds == pytest.approx(0.02)
    with pytest.raises(Unavailable, match="502 Bad Gateway"):
        way.send(Failed("TimeoutError"))


RETRY_AFTER = {
    "a number": ("3", 3),
    "a date": (lambda: email.utils.formatdate(time.time() + 100, usegmt=True), 100),
    "a date in the past": (lambda: email.utils.formatdate(time.time() - 60, usegmt=True), 0),
    "nothing": ("", 0),
    "nonsense": ("soon", 0),
    "a negative number": ("-5", 0),
    "not a number": ("nan", 0),
    "an infinite number": ("inf", 3600),
}


@pytest.mark.parametrize(("value", "seconds"), RETRY_AFTER.values(), ids=RETRY_AFTER.keys())
def test_retry_after_is_a_number_or_a_date(value, seconds):
    value = value() if callable(value) else value
    assert over_http._retry_after({"retry-after": value}) == pytest.approx(seconds, abs=30 if seconds == 100 else 0)


@both
def test_a_retry_after_beyond_the_deadline_ends_the_publish(publish):
    body = '{"detail":"publishes_per_second","code":"too_many_events"}'
    date = email.utils.formatdate(time.time() + 600, usegmt=True)
    with answering(429, body, Retry_After=date) as (url, bodies):
        with pytest.raises(Unavailable, match="publishes_per_second") as failed:
            publish(url, token=KEY, patience=30)
        assert len(bodies) == 1
    assert failed.value.code == "too_many_events" and not failed.value.may_be_published


@both
def test_a_retry_has_the_same_id(publish):
    with answering(503, '{"detail":"away","code":"log_unavailable"}') as (url, bodies):
        with pytest.raises(Unavailable) as failed:
            publish(url, token=KEY)
    assert failed.value.may_be_published
    # The deadline may cut the last attempt short.
    bodies = [body for body in bodies if body]
    assert len(bodies) > 1 and {json.loads(body)["event_id"] for body in bodies} == {"e-1"}
    assert all(json.loads(body)["audience"] == "everyone" for body in bodies)


@both
@pytest.mark.parametrize("kind", ["http", "redis", "unfinished", "trickle"])
def test_the_deadline_is_met_if_the_server_does_not_respond(publish, kind):
    head = b"HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n"
    server = {"unfinished": silent(head), "trickle": silent(head, trickle=b" ")}.get(kind) or silent()
    with server as port:
        url = f"redis://127.0.0.1:{port}" if kind == "redis" else f"http://127.0.0.1:{port}"
        options = {} if kind == "redis" else {"token": KEY}
        began = time.monotonic()
        with pytest.raises(Unavailable, match="can't be reached"):
            publish(url, patience=2, **options)
        # Twice the limit, because the machine may be busy.
        assert time.monotonic() - began < 4


@both
def test_the_deadline_covers_all_attempts(publish):
    began = time.monotonic()
    with pytest.raises(Unavailable, match="can't be reached") as failed:
        publish("http://127.0.0.1:1", token=KEY, patience=0.5)
    assert time.monotonic() - began < 5
    assert not failed.value.may_be_published, "nothing was sent"


@both
def test_rejections_of_redis_are_publish_errors(publish, tmp_path):
    server = RedisServer(tmp_path)
    try:
        with redis.Redis.from_url(server.url) as admin:
            permissions = ("~ws:ids", "resetchannels", "&ws:*", "+hmget", "+del", "+get")
            admin.execute_command("ACL", "SETUSER", "limited", "on", ">pw", *permissions)
            admin.config_set("requirepass", "a password")
            for credentials in ("", ":wrong@", "limited:pw@"):
                url = server.url.replace("://", f"://{credentials}")
                with pytest.raises(NotAuthorized, match="password") as failed:
                    publish(url)
                assert "wrong" not in str(failed.value)
            admin.set("ws:ids", "no hash")
            with pytest.raises(PublishError, match="WRONGTYPE"):
                publish(server.url.replace("://", "://:a password@"))
    finally:
        server.kill()


WRONG_URLS = ["", "hub.example.org", "ftp://hub", "http://", "http://hub:port", "https://hub/?token=abc", None]


@both
@pytest.mark.parametrize("url", WRONG_URLS, ids=repr)
def test_an_invalid_url_is_a_configuration_error(publish, url):
    with pytest.raises(ConfigurationError, match="URL"):
        publish(url, token=KEY)


@both
@pytest.mark.parametrize("url", ["redis://h:x", "redis://h/0?db=x", "redis+sentinel://h:x/m", "redis+cluster://h:x"])
def test_an_invalid_url_of_redis_is_a_configuration_error(publish, url):
    with pytest.raises(ConfigurationError, match="URL of Redis"):
        publish(url)


@both
@pytest.mark.parametrize("patience", [0, -1, float("nan"), None, "5"])
def test_an_invalid_patience_is_a_configuration_error(publish, patience):
    with pytest.raises(ConfigurationError, match="patience must be"):
        publish("http://127.0.0.1:1", patience=patience)


# attack: a token file contains a line break or a header => ConfigurationError, and nothing is sent or printed
@both
@pytest.mark.parametrize("secret", ["", "  ", None, "ffk_se cret", "ffk_secret\r\nX-Admin: 1", "ffk_sécret"])
def test_an_invalid_token_is_a_configuration_error(publish, secret):
    with pytest.raises(ConfigurationError, match="token") as failed:
        publish("http://127.0.0.1:1", token=secret)
    assert "cret" not in str(failed.value)


def test_a_token_from_a_file_may_end_in_a_line_break():
    with answering(201, ACCEPTED) as (url, _):
        assert publish(url, token=f"{KEY}\n").sequence == 7


def test_settings_from_the_environment_are_checked(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("FANFARE_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("FANFARE_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="FANFARE_TOKEN"):
        asyncio.run(RedisPubSub().publish_broadcast(NOTE))


def test_options_of_a_redis_url_are_accepted(node_url):
    for options in ("?db=0", "?protocol=3", "?socket_timeout=30&socket_connect_timeout=30", "?health_check_interval=5"):
        base = node_url.rsplit("/", 1)[0]
        assert publish(base + options, WSMessage(type="note"), patience=10).sequence > 0


@pytest.fixture(scope="module")
def node_url(server, tmp_path_factory):
    """The Redis of a running hub."""
    running = Hub(tmp_path_factory.mktemp("node"), REDIS_URL=server.url)
    yield server.url
    running.kill()


@both
def test_a_hub_that_starts_within_the_deadline_receives_the_event(publish, tmp_path, caplog):
    hub = Hub(tmp_path)
    address = hub.address
    hub.kill()
    outcome = []
    def run():
        outcome.append(publish(f"http://{address}", WSMessage(type="note"), patience=60, token=KEY))

    with caplog.at_level(logging.INFO, "fanfare_publisher"):
        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: caplog.records, "a log line about the first attempt", 30)
        hub.start(address)
        try:
            thread.join(60)
            assert outcome and not outcome[0].duplicate
        finally:
            hub.kill()
    first = caplog.records[0]
    assert first.name.startswith("fanfare_publisher") and first.levelno == logging.WARNING
    assert "retrying in" in first.getMessage()
    assert KEY not in caplog.text, "no token is logged"
