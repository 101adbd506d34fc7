"""Serve a model over HTTP: images in, COCO JSON or annotated images out."""

from d2_maskrcnn.serve.app import create_app
from d2_maskrcnn.serve.server import open_socket, run_server
from d2_maskrcnn.serve.settings import Settings, read_api_key

__all__ = ["Settings", "create_app", "open_socket", "read_api_key", "run_server"]
