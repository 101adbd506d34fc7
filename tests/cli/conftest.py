"""Fixtures of the demo: synthetic videos and a tiny model."""

from tests.video.conftest import demo_args, make_video, run_demo, start_demo, tiny_weights  # noqa: F401
