"""``python -m d2_maskrcnn.collect_env``: what a bug report should say about the machine and the packages."""

import d2_maskrcnn
from detectron2.utils.collect_env import collect_env_info


def describe_environment() -> str:
    """This package's version, the engine in use, and Detectron2's own report on the machine, as text."""
    return f"d2_maskrcnn {d2_maskrcnn.__version__}\nengine      {d2_maskrcnn.engine_info()}\n{collect_env_info()}"


if __name__ == "__main__":
    print(describe_environment())
