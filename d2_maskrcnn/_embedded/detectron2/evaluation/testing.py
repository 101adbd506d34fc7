"""Print and flatten results of an evaluation, and compare them with expected values."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task as three lines to copy into a table: task, names, values.

    Args:
        results: ``{task: {metric: value}}``; metrics with ``-`` in the name (those of single classes) are omitted.
    """
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare ``results`` with ``TEST.EXPECTED_RESULTS``, and exit the program with status 1 if one differs.

    Args:
        cfg: ``TEST.EXPECTED_RESULTS`` is a list of ``[task, metric, expected value, tolerance]``.
        results: ``{task: {metric: value}}``.

    Returns:
        True: all results are as expected, or none is expected.
    """
    failed = False
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results.get(task, {}).get(metric)
        # With `not ... <=`, so that NaN fails.
        if actual is None or not math.isfinite(actual) or not abs(actual - expected) <= tolerance:
            failed = True
            logger.error("%s/%s is %s, expected %s within %s", task, metric, actual, expected, tolerance)
    if failed:
        logger.error("The results are not as expected:\n%s", pprint.pformat(dict(results)))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("The results are as expected")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the keys of nested dicts with ``/``.

    >>> flatten_results_dict({"bbox": {"AP": 1.0}, "time": 2.0})
    {'bbox/AP': 1.0, 'time': 2.0}
    """
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": inner for name, inner in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
