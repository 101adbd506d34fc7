"""Read the images of a request, within the limits."""

import re
import unicodedata
from collections.abc import AsyncGenerator
from typing import NamedTuple

import anyio
from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from d2_maskrcnn.image_files import CONTENT
from d2_maskrcnn.serve.admission import Ticket
from d2_maskrcnn.serve.refusals import PARAMETERS, Refusal
from d2_maskrcnn.serve.settings import Settings

MULTIPART = "multipart/form-data"
MAX_FIELDS = 16  # besides files
CONTENT_TYPES = re.compile(r"image/[\w.+-]+|(application|binary)/octet-stream|" + MULTIPART, re.ASCII)
FORM_HINT = "expected a file, as curl -F file=@photo.jpg sends"


class Upload(NamedTuple):
    """A file of a request.

    Attributes:
        name: base name that the client gives, without control characters; "" for none.
        content: the bytes of the file.
    """

    name: str
    content: bytes


class _Parser(MultiPartParser):
    spool_max_size = 2**62  # the body is limited before: never write uploads to the disk
    complete = False  # whether the closing boundary has arrived

    def on_end(self) -> None:
        self.complete = True


async def read_uploads(request: Request, settings: Settings, ticket: Ticket) -> list[Upload]:
    """Read the files of a request: the whole body, or the files of a multipart form.

    Args:
        request: of which the body was not read yet.
        settings: ``max_bytes``, ``max_images`` and ``timeout`` are used.
        ticket: counts the bytes.

    Raises:
        Refusal: another content type (415), too many bytes (413), no or an empty file, a malformed form (400), other
            fields than files (422), or the body takes too long (408).
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not CONTENT_TYPES.fullmatch(kind):
        raise Refusal(
            415,
            f"Content-Type {kind or 'is missing'}: expected multipart/form-data with a file (curl -F file=@photo.jpg), "
            "or image/* or application/octet-stream with the bytes of an image.",
        )
    try:
        with anyio.fail_after(settings.timeout):
            stream = _limited(request, settings.max_bytes, ticket)
            if kind == MULTIPART:
                uploads = await _read_form(request, stream, settings.max_images)
            else:
                uploads = [Upload("", b"".join([chunk async for chunk in stream]))]
    except TimeoutError as error:
        raise Refusal(408, f"The request was not complete after {settings.timeout:g} s.") from error
    for upload in uploads:
        if not upload.content:
            raise Refusal(400, f"{upload.name[:100] or CONTENT}: empty; expected the bytes of an image.")
    return uploads


async def _limited(request: Request, max_bytes: int, ticket: Ticket) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of the body up to a number of bytes; a declared larger one is refused before it is read."""
    message = f"The request is larger than {max_bytes / 2**20:g} MiB, the limit of this server."
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise Refusal(413, message)
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise Refusal(413, message)
        ticket.add_bytes(len(chunk))
        yield chunk


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None], max_images: int) -> list[Upload]:
    # One file more than allowed, for a message of our own.
    parser = _Parser(request.headers, stream, max_files=max_images + 1, max_fields=MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(max_images) from error
        reason = error.message.rstrip(".")
        raise Refusal(400, f"The multipart form cannot be read ({reason}); {FORM_HINT}.") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    try:
        if not parser.complete:
            raise Refusal(400, f"The multipart form ends without its closing boundary; {FORM_HINT}.")
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise _unknown_field(name)
        if not files:
            raise Refusal(400, f"The multipart form contains no file; {FORM_HINT}.")
        if len(files) > max_images:
            raise _too_many(max_images)
        return [Upload(_base_name(file.filename or ""), await file.read()) for file in files]
    finally:
        await form.close()


def _unknown_field(name: str) -> Refusal:
    if name in PARAMETERS:
        return Refusal(422, f"Form field {name}: give it in the query of the URL, as in /predict?{name}=...")
    return Refusal(400, f"Form field {name!r:.100} has no file name; {FORM_HINT}.")


def _base_name(name: str) -> str:
    """Return a file name without its folders, of Unix or Windows, and without control characters.

    >>> _base_name("../../etc/a.png"), _base_name("C:\\\\b\\n.png")
    ('a.png', 'b.png')
    """
    return "".join(char for char in re.split(r"[/\\]", name)[-1] if unicodedata.category(char) != "Cc")


def _too_many(max_images: int) -> Refusal:
    return Refusal(413, f"The multipart form contains more than {max_images} files, the limit of this server.")
