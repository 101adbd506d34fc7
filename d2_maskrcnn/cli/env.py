"""Print versions, devices and the engine in use, for a bug report.

example:
  {program}
"""

import argparse

IMPORTS = ("d2_maskrcnn.collect_env",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    from d2_maskrcnn.collect_env import describe_environment

    print(describe_environment())
