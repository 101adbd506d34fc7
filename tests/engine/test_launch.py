import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2_maskrcnn.engine.launch import launch
from d2_maskrcnn.errors import UserError

SCRIPT = """
import os
import sys
from pathlib import Path
from d2_maskrcnn import UserError
from d2_maskrcnn.engine import launch, run_main
from d2_maskrcnn.engine.output_dir import LOCK_FILE, locked_output_dir
from detectron2.utils import comm

def main(folder, fail):
    ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank()))
    Path(folder, f"rank{comm.get_rank()}").write_text(f"{comm.get_world_size()} {ranks}")
    with locked_output_dir(folder):
        if comm.is_main_process():
            Path(folder, "owner").write_text(Path(folder, LOCK_FILE).read_text())
    if fail:
        raise UserError("bad on purpose")

if __name__ == "__main__":
    Path(sys.argv[1], f"started{os.getpid()}").touch()
    code = run_main(lambda: launch(main, int(sys.argv[3]), args=(sys.argv[1], sys.argv[2] == "fail")))
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # on Linux
    Path(sys.argv[1], f"threads{os.getpid()}").write_text(" ".join(threads))
    sys.exit(code)
"""


def start(tmp_path, repo_dir, fail, *prefix, count="2"):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(repo_dir), "OMP_NUM_THREADS": "1"}
    command = [*(prefix or [sys.executable]), str(script), str(tmp_path), fail, count]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_one_process_runs_here():
    seen = []
    launch(seen.append, args=("x",))
    assert seen == ["x"]


def test_bad_input_in_two_processes_is_one_line_and_a_status(tmp_path, repo_dir):
    result = start(tmp_path, repo_dir, "fail")
    assert result.returncode == 2, result.stderr
    assert "error: bad on purpose" in result.stderr
    assert "Traceback" not in result.stderr
    for rank in range(2):
        assert Path(tmp_path, f"rank{rank}").read_text() == "2 [(0, 0), (1, 1)]"
    (launcher,) = tmp_path.glob("started*")
    assert f"started{json.loads((tmp_path / 'owner').read_text())['pid']}" == launcher.name


def test_torchrun(tmp_path, repo_dir):
    result = start(
        tmp_path, repo_dir, "no", sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    )
    assert result.returncode == 0, result.stderr
    assert Path(tmp_path, "rank1").read_text() == "2 [(0, 0), (1, 1)]"
    # A thread of gloo that outlives the groups aborts a process now and then when it ends.
    threads = [path.read_text() for path in tmp_path.glob("threads*")]
    assert len(threads) == 2 and not any("gloo" in names for names in threads)
    owner = json.loads((tmp_path / "owner").read_text())["pid"]  # torchrun, not one of its workers
    assert not (tmp_path / f"started{owner}").exists()


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"processes_per_machine": 0}, "expected at least one process"),
        ({"num_machines": 2, "machine_rank": 2, "dist_url": "tcp://127.0.0.1:1"}, "a rank from 0"),
        ({"num_machines": 2}, "dist_url must be tcp"),
        ({"processes_per_machine": 1000000}, "processes_per_machine 1000000: (at most|this machine has)"),
    ],
)
def test_numbers_that_do_not_fit(numbers, expected):
    with pytest.raises(UserError, match=expected):
        launch(print, **numbers)
