"""The web application: its endpoints and their parameters."""

import hmac
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BeforeValidator

from d2_maskrcnn._version import __version__
from d2_maskrcnn.errors import did_you_mean
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.runtimes import ExportedModel
from d2_maskrcnn.serve.bodies import read_uploads
from d2_maskrcnn.serve.documents import MEDIA_TYPES, CocoDocument, ErrorDocument, ImageFormat, categories, image_format
from d2_maskrcnn.serve.metrics import Metrics
from d2_maskrcnn.serve.middleware import Observer
from d2_maskrcnn.serve.page import content_security_policy, render_page
from d2_maskrcnn.serve.refusals import HANDLERS, Refusal
from d2_maskrcnn.serve.service import Options, Service
from d2_maskrcnn.serve.settings import Settings

logger = logging.getLogger(__name__)

BINARY = {"schema": {"type": "string", "format": "binary"}}
ERRORS = {
    400: "an image cannot be read, is empty, or has too many pixels", 401: "no or a wrong API key",
    408: "the request arrives too slowly", 413: "too many bytes or files", 415: "another content type",
    422: "a parameter is wrong", 503: "overload, or the server is stopping; Retry-After has the seconds to wait",
}  # fmt: skip

_IMAGE_FORMATS: dict[str, ImageFormat | None] = {"json": None, "png": "png", "jpeg": "jpeg"}


def _refuse_underscores(value: Any) -> Any:
    """Refuse ``0_1``, which Pydantic would read as 1."""
    if isinstance(value, str) and "_" in value:
        raise ValueError("not a number")
    return value


Threshold = Annotated[
    float | None,
    BeforeValidator(_refuse_underscores),
    Query(ge=0, le=1, description="detections must exceed this score"),
]
WithMasks = Annotated[bool, Query(description="whether to return masks")]
Format = Annotated[
    Literal["json", "png", "jpeg"] | None,
    Query(description="COCO JSON, or the image with its detections; default: what the Accept header prefers"),
]


def create_app(predictor: Predictor, settings: Settings | None = None, name: str = "model") -> FastAPI:
    """Build the application.

    Args:
        predictor: the model. Requests can ask for scores down to its threshold.
        settings: the limits and the API key.
        name: of the model, as shown to clients.

    Returns:
        An ASGI application; ``app.state.service`` is its :class:`~d2_maskrcnn.serve.service.Service`.
    """
    settings = _limited_by_model(settings or Settings(), predictor)
    metrics = Metrics()
    service = Service(predictor, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app: FastAPI = FastAPIOffline(
        title="d2_maskrcnn",
        version=__version__,
        description="Instance segmentation with Mask R-CNN.",
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.state.service = service
    app.add_middleware(Observer, metrics=metrics)
    protected = [Depends(each) for each in _key_checks(settings.api_key)]
    _add_predictions(app, service, protected)
    _add_status(app, service, metrics, _describe(predictor, settings, name), protected)
    return app


def _limited_by_model(settings: Settings, predictor: Predictor) -> Settings:
    """Raise the thresholds to the lowest score that the model returns, with a warning for the default one."""
    exported = predictor.model.info.score_threshold if isinstance(predictor.model, ExportedModel) else 0.0
    lowest = max(settings.lowest_threshold, predictor.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, exported)
    if settings.default_threshold < lowest:
        logger.warning(
            "The default threshold is raised from %g to %g, the lowest score that the model returns.",
            settings.default_threshold,
            lowest,
        )
    return replace(settings, lowest_threshold=lowest, default_threshold=max(settings.default_threshold, lowest))


def _query_check(*known: str) -> Any:
    """Return a dependency that refuses other parameters of the query than the known ones, and repeated ones."""

    def check_query(request: Request) -> None:
        names = [name for name, _ in request.query_params.multi_items()]
        for name in names:
            if name not in known:
                raise Refusal(
                    422, f"{name:.100}: unknown parameter; expected {', '.join(known)}.{did_you_mean(name, known)}"
                )
            if names.count(name) > 1:
                raise Refusal(422, f"{name}: given {names.count(name)} times; expected once.")

    return Depends(check_query)


def _key_checks(key: str) -> list[Any]:
    """Return the dependencies of protected endpoints; none without a key."""
    if not key:
        return []
    bearer, header = HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False)

    def check_key(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        plain: Annotated[str | None, Depends(header)],
    ) -> None:
        given = plain or (credentials.credentials if credentials else "")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refusal(401, "No or a wrong API key: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")

    return [check_key]


def _add_predictions(app: FastAPI, service: Service, protected: Sequence[Any]) -> None:
    errors: dict[Any, Any] = {status: {"model": ErrorDocument, "description": text} for status, text in ERRORS.items()}
    images = dict.fromkeys(MEDIA_TYPES.values(), BINARY)
    coco = {"model": CocoDocument, "description": "the detections"}
    one: dict[Any, Any] = {200: {**coco, "content": images}, **errors}
    many: dict[Any, Any] = {200: coco, **errors}

    def body(multipart: dict[str, Any], **others: Any) -> dict[str, Any]:
        form = {"schema": {"type": "object", "properties": multipart, "required": list(multipart)}}
        return {"requestBody": {"required": True, "content": {"multipart/form-data": form, **others}}}

    file = {"type": "string", "format": "binary"}
    one_body = body({"file": file}, **{"application/octet-stream": BINARY, "image/*": BINARY})
    many_body = body({"files": {"type": "array", "items": file}})

    checks = [*protected, _query_check("threshold", "masks", "format")]

    @app.post("/predict", responses=one, openapi_extra=one_body, dependencies=checks)
    async def predict(
        request: Request, threshold: Threshold = None, masks: WithMasks = True, format: Format = None
    ) -> Response:
        """Detect objects in one image: the body of the request, or the file of a multipart form."""
        kind = image_format(request.headers.get("accept", "")) if format is None else _IMAGE_FORMATS[format]
        options = Options(_threshold(service.settings, threshold), masks, kind)
        content = await _answer(service, request, options, single=True)
        return Response(content, media_type="application/json" if kind is None else MEDIA_TYPES[kind])

    checks = [*protected, _query_check("threshold", "masks")]

    @app.post("/predict_batch", responses=many, openapi_extra=many_body, dependencies=checks)
    async def predict_batch(request: Request, threshold: Threshold = None, masks: WithMasks = True) -> Response:
        """Detect objects in the files of a multipart form; if one cannot be read, the request is refused."""
        options = Options(_threshold(service.settings, threshold), masks)
        return Response(await _answer(service, request, options), media_type="application/json")


async def _answer(service: Service, request: Request, options: Options, single: bool = False) -> bytes:
    """Read the images of a request, put it into the queue, and return the content of its answer."""
    with service.admission.admit() as ticket:
        uploads = await read_uploads(request, service.settings, ticket)
        if single and len(uploads) > 1:
            raise Refusal(400, f"{len(uploads)} files: expected one; several go to /predict_batch.")
        ticket.enter_queue()
        request.state.fields = {"images": len(uploads), "bytes": ticket.bytes}
        return await service.answer(request, uploads, options)


def _threshold(settings: Settings, given: float | None) -> float:
    if given is None:
        return settings.default_threshold
    if given < settings.lowest_threshold:
        raise Refusal(
            422, f"threshold {given:g}: expected at least {settings.lowest_threshold:g}, the lowest of this server."
        )
    return given


def _add_status(
    app: FastAPI, service: Service, metrics: Metrics, info: dict[str, Any], protected: Sequence[Any]
) -> None:
    html = render_page(service.settings)
    policy = content_security_policy(html)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"model": ErrorDocument, "description": "restart the server"}})
    async def health() -> dict[str, str]:
        """Tell whether the server works."""
        if not service.batcher.alive:
            raise Refusal(503, "The thread of the model has ended; restart the server.")
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"model": ErrorDocument, "description": "send requests elsewhere"}})
    async def ready() -> dict[str, str]:
        """Tell whether the next request will be accepted."""
        service.admission.check()
        return {"status": "ready"}

    @app.get("/metrics", dependencies=protected, response_class=Response)
    async def prometheus() -> Response:
        """Return metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.get("/info", dependencies=protected)
    async def information() -> JSONResponse:
        """Describe the model and the limits."""
        return JSONResponse(info)


def _describe(predictor: Predictor, settings: Settings, name: str) -> dict[str, Any]:
    limits = ("max_bytes", "max_pixels", "max_images", "max_queue", "timeout", "batch_size")
    return {
        "model": name,
        "format": Path(predictor.cfg.MODEL.WEIGHTS).suffix.lstrip("."),
        "classes": categories(predictor),
        "device": str(predictor.device),
        "precision": str(predictor.dtype).removeprefix("torch."),
        "lowest_threshold": settings.lowest_threshold,
        "default_threshold": settings.default_threshold,
        "limits": {each: getattr(settings, each) for each in limits},
        "versions": {"d2_maskrcnn": __version__, "torch": torch.__version__},
    }
