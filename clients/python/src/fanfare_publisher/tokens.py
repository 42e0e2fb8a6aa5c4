"""The source of a listener's token: a text, or a function that is called for each connection."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
from typing import Any, Awaitable, Callable, Literal, Union

#: Why a token is needed: ``connect`` for a connection, ``expiring`` before the current token expires, ``refused`` after
#: the hub has rejected the last one.
TokenReason = Literal["connect", "expiring", "refused"]

_Given = Union[str, Awaitable[str]]
Token = Union[str, Callable[[], _Given], Callable[[TokenReason], _Given]]

#: Three parts in base64url (RFC 7515 section 7.1).
_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)


class TokenError(Exception):
    """The token function failed. The message never contains the value that it returned, which may be a secret."""


class TokenSource:
    """A listener's token."""

    def __init__(self, token: Token, timeout: float):
        if not callable(token) and (not isinstance(token, str) or not token.strip() or not token.isprintable()):
            raise ValueError("the token is not valid: expected a str of one line, or a function that returns one")
        self._token, self._timeout = token, timeout

    @property
    def is_function(self) -> bool:
        return callable(self._token)

    async def get(self, reason: TokenReason) -> str:
        """Returns a token. Raises :class:`TokenError` if the function fails or exceeds the time limit."""
        if isinstance(self._token, str):
            return self._token.strip()
        try:
            token = await asyncio.wait_for(self._call(self._token, reason), self._timeout)
        except asyncio.TimeoutError:
            raise TokenError(f"the token function did not return within {self._timeout:g} s") from None
        except Exception as error:
            raise TokenError(f"the token function raised {type(error).__name__}: {error}") from error
        token = token.strip() if isinstance(token, str) else token
        if not isinstance(token, str) or not _JWT.fullmatch(token):
            raise TokenError(f"the token function must return a JWT, but returned {_kind(token)}")
        return token

    async def _call(self, function: Callable[..., Any], reason: TokenReason) -> Any:
        arguments = (reason,) if _takes_reason(function) else ()
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        token = await _in_thread(lambda: function(*arguments))
        return await token if inspect.isawaitable(token) else token


def _takes_reason(function: Callable[..., Any]) -> bool:
    """Returns whether the first argument is required or named `reason`. Other arguments keep their defaults."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return bool(positional) and (positional[0].default is positional[0].empty or positional[0].name == "reason")


async def _in_thread(call: Callable[[], Any]) -> Any:
    """Calls a function that may block, in a daemon thread, so that it cannot keep the process alive."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: Any) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(call)
        except StopIteration as ended:
            error = RuntimeError(f"StopIteration: {ended}")
        except Exception as failure:
            error = failure  # type: ignore[assignment]
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # The loop was closed in the meantime.

    threading.Thread(target=run, name="fanfare-token", daemon=True).start()
    return await outcome


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a str of another form" if value else "an empty str"
    return "None" if value is None else type(value).__name__
