"""Serve a model over HTTP: images in, COCO JSON or annotated images out, and a web page to try it.

examples:
  {program} model_final.pth
  {program} model.onnx --host 0.0.0.0 --port 80 --api-key-file key.txt
  curl -F file=@photo.jpg http://127.0.0.1:8000/predict
  curl -F file=@photo.jpg "http://127.0.0.1:8000/predict?format=png" --output annotated.png

The page is at http://127.0.0.1:8000, the documentation of the API at /docs. An API key can also be in the environment
variable D2_MASKRCNN_API_KEY. SIGTERM or Ctrl-C finish the requests that were accepted and stop the server.
"""

import argparse
from pathlib import Path

from d2_maskrcnn.errors import UserError, import_extra

IMPORTS = ("d2_maskrcnn.predictor",)
PRECISIONS = ("float32", "bfloat16", "float16", "auto")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint (.pth, .safetensors) or exported file (.onnx, .xml, "
        ".pt2)")  # fmt: skip
    add = parser.add_argument_group("network").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="port (8000; 0: a free one)")
    add("--api-key-file", type=Path, metavar="FILE", help="file with the key that requests must present")
    add = parser.add_argument_group("limits").add_argument
    add("--max-megabytes", type=float, default=32, metavar="N", help="largest request (32)")
    add("--max-megapixels", type=float, default=50, metavar="N", help="largest image (50)")
    add("--max-queue", type=int, default=128, metavar="N", help="most requests that wait; others get 503 (128)")
    add("--timeout", type=float, default=30, metavar="S", help="seconds to receive a request, and to answer it (30)")
    add = parser.add_argument_group("model").add_argument
    add("--batch-size", type=int, default=8, metavar="N", help="most images per forward pass (8)")
    add("--threshold", type=float, default=0.5, metavar="P", help="minimum score unless a request gives one (0.5), "
        "not below --lowest-threshold")  # fmt: skip
    add(
        "--lowest-threshold",
        type=float,
        default=0.05,
        metavar="P",
        help="lowest score that a request can ask for (0.05)",
    )
    add("--classes", nargs="+", metavar="NAME", help="only these classes: names or numbers")
    add("--tile", type=int, metavar="PIXELS", help="predict large images by square tiles of this side")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--precision", choices=PRECISIONS, help="of the computation (default: the config's)")
    add("--config-file", metavar="FILE", help="config of the model (default: the one that it stores)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; comes last"
    )


def run(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: bad input, or the extra is not installed.
    """
    for package in ("fastapi", "fastapi_offline", "python_multipart", "prometheus_client", "uvicorn", "httptools"):
        import_extra(package, "serve")
    from d2_maskrcnn.predictor import Predictor
    from d2_maskrcnn.serve import Settings, create_app, open_socket, read_api_key, run_server
    from d2_maskrcnn.serve.server import log_as_json

    settings = Settings(
        max_bytes=_whole("--max-megabytes", args.max_megabytes, 2**20),
        max_pixels=_whole("--max-megapixels", args.max_megapixels, 10**6),
        max_queue=args.max_queue,
        timeout=args.timeout,
        batch_size=args.batch_size,
        default_threshold=args.threshold,
        lowest_threshold=args.lowest_threshold,
        api_key=read_api_key(args.api_key_file),
    )
    with open_socket(args.host, args.port) as listener:  # before the model, so that a used port is reported at once
        log_as_json()
        predictor = Predictor(
            args.model,
            config=args.config_file,
            overrides=args.opts,
            device=args.device,
            precision=args.precision,
            threshold=settings.lowest_threshold,
            classes=args.classes,
            tile=args.tile,
        )
        run_server(create_app(predictor, settings, Path(args.model).name), listener)


def _whole(option: str, value: float, unit: int) -> int:
    """Convert the value of an option to a whole number of the smaller unit."""
    if not 1 <= value * unit < float("inf"):
        raise UserError(f"{option} {value:g}: expected a positive number.")
    return int(value * unit)
