import logging
import os
import re
import subprocess
import sys

import pytest

import detectron2
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)


@pytest.fixture
def name(request):
    """A logger per test."""
    name = f"test_logger.{request.node.name}"
    yield name
    for handler in list(logging.getLogger(name).handlers):
        handler.close()
        logging.getLogger(name).removeHandler(handler)


class TestSetup:
    def test_terminal(self, name, capsys):
        logger = setup_logger(name=name, abbrev_name="t", color=False)
        logging.getLogger(f"{name}.part").info("hello")
        logger.warning("careful")
        first, second = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"\[\d\d/\d\d \d\d:\d\d:\d\d t\.part\]: hello", first)
        assert re.fullmatch(r"WARNING \[\d\d/\d\d \d\d:\d\d:\d\d t\]: careful", second)

    @pytest.mark.parametrize(("logged", "shown"), [("detectron2", "d2"), ("detectron2.data.x", "d2.data.x")])
    def test_detectron2_is_abbreviated(self, logged, shown, capsys):
        logger = setup_logger(color=False)
        assert logger.name == "detectron2"
        logging.getLogger(logged).info("x")
        assert f" {shown}]: x" in capsys.readouterr().out
        logger.handlers.clear()
        logger.propagate = True

    @pytest.mark.parametrize(
        ("color", "force", "expected"), [(True, "", False), (True, "1", True), (False, "1", False)]
    )
    def test_colors_are_for_terminals(self, color, force, expected):
        """In a process of its own, as termcolor asks once only what it writes to."""
        code = f"from detectron2.utils.logger import setup_logger; setup_logger(color={color}).error('x')"
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(detectron2.__file__))
        if force:
            environment["FORCE_COLOR"] = force
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ("\x1b[" in done.stdout) == expected

    @pytest.mark.parametrize(
        ("output", "rank", "file"),
        [
            ("out", 0, "out/log.txt"),
            ("out", 2, "out/log.txt.rank2"),
            ("a/b.txt", 0, "a/b.txt"),
            ("a/b.log", 1, "a/b.log.rank1"),
        ],
    )
    def test_file(self, name, tmp_path, capsys, output, rank, file):
        logger = setup_logger(str(tmp_path / output), rank, name=name)
        logger.debug("grüße")
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert re.fullmatch(rf"\[\d\d/\d\d \d\d:\d\d:\d\d\] {re.escape(name)} DEBUG: grüße\n", text)
        assert (capsys.readouterr().out != "") == (rank == 0)

    def test_calling_again_doubles_nothing(self, name, tmp_path, capsys):
        for _ in range(3):
            logger = setup_logger(str(tmp_path), name=name)
        setup_logger(name=name)
        logger.info("once")
        assert capsys.readouterr().out.count("once") == 1
        assert (tmp_path / "log.txt").read_text().count("once") == 1

    def test_no_terminal_and_propagation(self, name, capsys):
        logger = setup_logger(name=name, configure_stdout=False, enable_propagation=True)
        assert logger.handlers == [] and logger.propagate
        assert not setup_logger(name=name).propagate


class TestNotTooOften:
    @pytest.fixture
    def messages(self, caplog):
        caplog.set_level(logging.INFO, logger="often")
        return lambda: [record.getMessage() for record in caplog.records]

    @pytest.mark.parametrize(("n", "shown"), [(0, []), (1, [0]), (2, [0, 1])])
    def test_first_n(self, messages, n, shown):
        # The line of code is what counts, so each row needs a line of its own.
        calls = {
            0: lambda i: log_first_n(logging.INFO, str(i), 0, name="often"),
            1: lambda i: log_first_n(logging.INFO, str(i), 1, name="often"),
            2: lambda i: log_first_n(logging.INFO, str(i), 2, name="often"),
        }
        for i in range(4):
            calls[n](i)
        assert messages() == [str(i) for i in shown]

    def test_first_n_of_each_message(self, messages):
        for text in ("a", "b", "a", "a"):
            log_first_n(logging.INFO, text, name="often", key="message")
        assert messages() == ["a", "b"]
        with pytest.raises(ValueError, match="'line'"):
            log_first_n(logging.INFO, "x", key="line")

    @pytest.mark.parametrize(("n", "shown"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3])])
    def test_every_n(self, messages, n, shown):
        calls = {
            1: lambda i: log_every_n(logging.INFO, str(i), 1, name="often"),
            2: lambda i: log_every_n(logging.INFO, str(i), 2, name="often"),
            3: lambda i: log_every_n(logging.INFO, str(i), 3, name="often"),
        }
        for i in range(5):
            calls[n](i)
        assert messages() == [str(i) for i in shown]

    def test_every_n_seconds(self, messages):
        for i in range(3):
            log_every_n_seconds(logging.INFO, f"slow {i}", 1000, name="often")
            log_every_n_seconds(logging.INFO, f"fast {i}", 0, name="often")
        assert messages() == ["slow 0", "fast 0", "fast 1", "fast 2"]

    def test_logger_is_the_callers_module(self, caplog):
        with caplog.at_level(logging.INFO):
            log_first_n(logging.INFO, "who")
        assert [record.name for record in caplog.records] == [__name__]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"AP": 1.23456}, ["AP", "1.235"]),
        ({"AP": float("nan"), "n": 2}, ["AP", "n", "nan", "2"]),
    ],
)
def test_small_table(values, lines):
    cells = re.findall(r"[^\s|:-]+", create_small_table(values))
    assert cells == lines
