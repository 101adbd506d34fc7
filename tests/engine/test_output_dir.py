import os
import signal
import socket
import subprocess
import sys

import pytest

from d2_maskrcnn.engine.output_dir import LOCK_FILE, lock_output_dir, locked_output_dir, unlock_output_dir
from d2_maskrcnn.engine.setup import prepared
from d2_maskrcnn.errors import UserError

HOLD = """
import os, sys, time
from d2_maskrcnn.engine.output_dir import lock_output_dir
lock_output_dir(sys.argv[1])
child = os.fork()  # as a worker of a data loader, which may survive the main process for some seconds
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_process(repo_dir, tmp_path):
    """A process that has locked tmp_path, with a child process."""
    env = {**os.environ, "PYTHONPATH": str(repo_dir)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_a_folder_in_use_is_refused_and_a_dead_owner_replaced(other_process, tmp_path, tiny_cfg, caplog):
    owner = f"process {other_process.pid} on {socket.gethostname()}"
    refused = pytest.raises(UserError, match=f"OUTPUT_DIR {tmp_path} is in use by {owner}: stop it or")
    with refused, prepared(tiny_cfg("OUTPUT_DIR", tmp_path), train=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    other_process.kill()
    other_process.wait()
    with locked_output_dir(str(tmp_path)):
        assert f"was left by {owner}, which has ended: taking it over" in caplog.text


def test_locks_of_one_process_can_be_nested(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with locked_output_dir(str(tmp_path)):
        with locked_output_dir(str(link)):
            pass
        assert (tmp_path / LOCK_FILE).is_file()
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_folder_is_created(tmp_path):
    lock_output_dir(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / LOCK_FILE).is_file()
    unlock_output_dir(str(tmp_path / "a" / "b"))


def test_a_damaged_lock_file_is_taken_over(tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"pid": "x"')
    with locked_output_dir(str(tmp_path)):
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
