"""Run the application: the socket, the log as JSON lines, and a graceful stop."""

import asyncio
import json
import logging
import signal
import socket
import sys
import traceback
from datetime import datetime, timezone
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.serve.admission import Admission
from d2_maskrcnn.serve.service import Service

logger = logging.getLogger(__name__)

BACKLOG = 1024  # connections that the system accepts before the server does
KEEP_ALIVE = 75  # seconds; longer than load balancers keep idle connections
MAX_PORT = 65_535
STOP_SECONDS = 5  # for closing connections, in addition to the time limits of requests
LOOPBACK = ("127.", "::1", "localhost")


class JsonFormatter(logging.Formatter):
    """Format log records as JSON objects, one a line; ``extra={"fields": {...}}`` adds keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line)


def log_as_json() -> None:
    """Write the log of the whole process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("d2_maskrcnn.serve", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


def open_socket(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Args:
        host: name or address.
        port: 0 chooses a free one.

    Raises:
        UserError: the address does not exist or is in use, or may not be used, or the port is out of range.
    """
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"port {port}: expected a number from 0 to {MAX_PORT}; 0 chooses a free one.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot listen on {host}, port {port} ({reason}); choose another host or port.") from error


def limit_header_time(seconds: float) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with a time limit for the header of a request; the application limits the body.

    Args:
        seconds: after which a connection that has not sent a complete header is closed, from its start or, if it was
            kept alive, from the first byte of the next request.
    """

    class Protocol(HttpToolsProtocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.timer = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            if self.timer is None:
                self.timer = self.loop.call_later(seconds, self.transport.close)
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:  # a request is being answered
                self.stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_timer()
            super().connection_lost(exc)

        def stop_timer(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return Protocol


class Server(uvicorn.Server):
    """A server that refuses new requests as soon as it is asked to stop, and finishes those that it has accepted.

    Args:
        config: of uvicorn.
        admission: refuses requests from then on.
    """

    def __init__(self, config: uvicorn.Config, admission: Admission) -> None:
        super().__init__(config)
        self._admission = admission

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT; a second SIGINT stops at once."""
        self._admission.stopping = True
        super().handle_exit(sig, frame)


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        app: from :func:`~d2_maskrcnn.serve.app.create_app`.
        listener: from :func:`open_socket`; it is closed at the end.

    Raises:
        SystemExit: with status 0, after SIGTERM.
        KeyboardInterrupt: after SIGINT.
    """
    service: Service = app.state.service
    settings = service.settings
    config = uvicorn.Config(
        app,
        http=limit_header_time(settings.timeout),
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(2 * settings.timeout) + STOP_SECONDS,
        backlog=BACKLOG,
    )
    host, port = listener.getsockname()[:2]
    if not host.startswith(LOOPBACK) and not settings.api_key:
        logger.warning("The server is open to the network without an API key.")
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    logger.info("serving", extra={"fields": {"url": url}})
    signal.signal(signal.SIGTERM, _exit)  # before and after the server's own handler
    Server(config, service.admission).run([listener])


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
