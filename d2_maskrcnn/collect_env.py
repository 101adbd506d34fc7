"""Print the machine and package versions for a bug report: ``python -m d2_maskrcnn.collect_env``."""

import d2_maskrcnn
from detectron2.utils.collect_env import collect_env_info


def describe_environment() -> str:
    """Return this package's version, the engine in use, and Detectron2's report on the machine, as text."""
    return f"d2_maskrcnn {d2_maskrcnn.__version__}\nengine      {d2_maskrcnn.engine_info()}\n{collect_env_info()}"


if __name__ == "__main__":
    print(describe_environment())
