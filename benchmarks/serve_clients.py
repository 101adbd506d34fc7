"""Clients of the server's benchmark: good requests, bad ones, and clients that go away."""

import asyncio
import io
import itertools
import random
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from PIL import Image
from tqdm import tqdm

from d2_maskrcnn import example

BAD_SHARE = 8  # one request in this many


def make_images() -> list[bytes]:
    """Return 24 different JPEG files of three aspect ratios."""
    files = []
    for path in example.IMAGES:
        image = Image.open(path).convert("RGB")
        width, height = image.size
        for box, flip, turn in itertools.product(
            ((0, 0, width, height), (0, 0, width, height * 3 // 4), (0, 0, width * 3 // 4, height)), (0, 1), (0, 1)
        ):
            crop = image.crop(box)
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop
            crop = crop.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if turn else crop
            buffer = io.BytesIO()
            crop.save(buffer, "JPEG", quality=92)
            files.append(buffer.getvalue())
    return files


def bomb() -> bytes:
    """Return a PNG whose header promises 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10**7))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bad_requests(image: bytes) -> dict[str, tuple[bytes, str, int]]:
    """Return the body, the content type and the expected status of each kind of bad request."""
    return {
        "truncated": (image[: len(image) // 2], "image/jpeg", 400),
        "30,000 x 30,000": (bomb(), "image/png", 400),
        "not an image": (b"hello\n" * 1000, "image/jpeg", 400),
        "wrong content type": (image, "application/x-www-form-urlencoded", 415),
    }


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        answers: image index and body of each answer with status 200.
        refused: statuses of bad requests by kind. other: further answers to good requests.
        failed: ids of requests without an answer.
        gone: requests whose client went away on purpose.
        seconds: time of each answer.
    """

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    refused: dict[str, list[int]] = field(default_factory=dict)
    other: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    gone: int = 0
    seconds: list[float] = field(default_factory=list)


class Connection:
    """A connection that is kept open; less work than a general HTTP client, which would take the server's cores."""

    def __init__(self, url: httpx.URL) -> None:
        self._url = url
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, content: bytes, content_type: str, request_id: str) -> tuple[int, dict[str, str], bytes]:
        """Send an image and return status, headers and body of the answer.

        Raises:
            OSError, EOFError: there is no answer.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._url.host, self._url.port)
        reader, writer = self._streams
        writer.write(request_head(len(content), content_type, request_id) + content)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, body

    def close(self) -> None:
        """Close the connection, in the middle of a request as well."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def leave(self, content: bytes) -> None:
        """Send an image and go away before the answer."""
        sending = asyncio.create_task(self.post(content, "image/jpeg", "left"))
        await asyncio.wait({sending}, timeout=0.05)
        sending.cancel()
        self.close()


def request_head(length: int, content_type: str, request_id: str) -> bytes:
    """Return the head of a request."""
    return (
        f"POST /predict HTTP/1.1\r\nHost: benchmark\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\nX-Request-ID: {request_id}\r\n\r\n"
    ).encode()


class Clients:
    """Clients that send requests until they are told to stop."""

    def __init__(self, url: httpx.URL, images: list[bytes], count: int) -> None:
        self.url, self.images, self.count = url, images, count
        self.bad = bad_requests(images[0])
        self.load = Load()
        self.stop = False
        self._numbers = itertools.count()

    async def run(self, seconds: float, finish: Callable[[], None] | None = None) -> float:
        """Send requests for some seconds, call ``finish``, and return how long it took until all were answered."""
        self.stop = False
        start = time.monotonic()
        tasks = [asyncio.create_task(self._client(number)) for number in range(self.count)]
        for _ in tqdm(range(round(seconds)), desc=f"{self.count} clients", unit="s", leave=False):
            await asyncio.sleep(1)
        if finish:
            finish()
        else:
            self.stop = True
        await asyncio.gather(*tasks)
        return time.monotonic() - start

    async def _client(self, number: int) -> None:
        choice, connection = random.Random(number), Connection(self.url)
        while not self.stop:
            request_id = f"request-{next(self._numbers)}"
            try:
                if choice.randrange(BAD_SHARE):
                    await self._good(connection, choice.randrange(len(self.images)), request_id)
                elif kind := choice.choice([*self.bad, ""]):
                    content, content_type, _ = self.bad[kind]
                    status, _, _ = await connection.post(content, content_type, request_id)
                    self.load.refused.setdefault(kind, []).append(status)
                else:
                    await connection.leave(self.images[0])
                    self.load.gone += 1
            except (OSError, EOFError):  # refused, or closed by a server that stops
                self.load.failed.append(request_id)
                return
        connection.close()

    async def _good(self, connection: Connection, index: int, request_id: str) -> None:
        start = time.monotonic()
        status, headers, body = await connection.post(self.images[index], "image/jpeg", request_id)
        if status == 200:
            self.load.seconds.append(time.monotonic() - start)
            self.load.answers.append((index, body))
        else:
            self.load.other.append(status)
            await asyncio.sleep(float(headers.get("retry-after", 0)))
