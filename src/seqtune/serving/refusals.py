"""What a request is refused with: the shape of OpenAI's errors, everywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

GONE = 499  # nobody reads it: the client hung up


class Refusal(HTTPException):
    """A request is not answered; the text is for people.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
        code: one word for programs.
        param: the field of the request that is wrong.
        retry_after: seconds after which another try is worth it.

    Example:
        >>> Refusal(404, "there is no run 'x'", "model_not_found", "model").body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(status, message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON form."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer to the request."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Json(self.body(), self.status, headers)


class Json(Response):
    """JSON in ASCII, so that half a character, which an input may hold, can be sent back."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None):
        super().__init__(json.dumps(content, separators=(",", ":")), status_code, dict(headers or {}))
