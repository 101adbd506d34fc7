"""What happens around every request: a log line, metrics, a request id, and bodies that nobody reads."""

import logging
import re
import time
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d2_maskrcnn.serve.metrics import Metrics
from d2_maskrcnn.serve.refusals import CLIENT_CLOSED, error_response

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_VALID_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
DRAIN_BYTES, DRAIN_SECONDS = 2**26, 2.0
TOO_SLOW = 408


class Observer:
    """ASGI middleware that observes the requests of an application.

    Args:
        app: the application.
        metrics: get the status and the time of each request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        start = time.monotonic()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_CLOSED
        except Exception:  # a fault of this program must not end the server
            logger.exception("A request failed.", extra={"fields": {"id": exchange.id}})
            if not exchange.started:
                text = f"Internal error; the log of the server has the details under the request id {exchange.id}."
                await error_response(500, text)(scope, exchange.receive, exchange.send)
        finally:
            self._record(scope, exchange, time.monotonic() - start)

    def _record(self, scope: Scope, exchange: "Exchange", seconds: float) -> None:
        endpoint = getattr(scope.get("route"), "path", None) or "other"
        status = exchange.status or CLIENT_CLOSED
        self._metrics.requests.labels(endpoint, str(status)).inc()
        self._metrics.request_seconds.labels(endpoint).observe(seconds)
        client = scope.get("client")
        fields = {
            "id": exchange.id,
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            **scope.get("state", {}).get("fields", {}),
        }
        level = logging.DEBUG if endpoint in ("/health", "/ready", "/metrics") and status == 200 else logging.INFO
        logger.log(level, "request", extra={"fields": fields})


class Exchange:
    """A request and its answer.

    Attributes:
        id: the client's request id if it is valid, else a new one; the answer has it as well.
        status: of the answer; 0 before it starts.
        started: whether the answer has started.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        self.id = given if _VALID_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self._unread = "content-length" in headers or "transfer-encoding" in headers
        self._invited = "expect" not in headers  # a client that waits for "100 Continue" has sent nothing yet

    @property
    def started(self) -> bool:
        """Whether the status has been sent."""
        return self.status != 0

    async def receive(self) -> Message:
        """Receive a message from the client."""
        self._invited = True
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client, and before an answer starts read what is left of the request."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status != TOO_SLOW:
                await self._drain()
            MutableHeaders(scope=message)[REQUEST_ID] = self.id
        await self._send(message)

    async def _drain(self) -> None:
        """Read and drop the rest of the body: a connection closed before loses the answer on its way."""
        left = DRAIN_BYTES
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._unread and self._invited and left > 0:
                left -= len((await self.receive()).get("body", b""))
