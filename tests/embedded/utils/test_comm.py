"""Every function in one process, and in four processes over gloo that simulate two machines."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from detectron2.utils import comm


class TestOneProcess:
    def test_numbers(self):
        assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
        assert comm.is_main_process()
        comm.synchronize()

    def test_talk(self):
        data = {"a": [1]}
        assert comm.all_gather(data) == [data]
        assert comm.gather(data) == [data]
        assert comm.reduce_dict({}) == {}
        assert comm.reduce_dict({"x": torch.tensor(2.0)})["x"] == 2.0

    def test_seed_comes_from_numpy(self):
        seeds = []
        for _ in range(2):
            np.random.seed(3)
            seeds.append(comm.shared_random_seed())
        assert seeds[0] == seeds[1] and 0 <= seeds[0] < 2**31

    def test_local_group_is_unknown(self):
        with pytest.raises(RuntimeError, match="create_local_process_group"):
            comm.get_local_process_group()


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    errors = []
    for attempt in (comm.get_local_rank, lambda: comm.create_local_process_group(3)):
        try:
            attempt()
        except (RuntimeError, ValueError) as error:
            errors.append(str(error))
    comm.create_local_process_group(2)
    np.random.seed(rank)
    results = {
        "errors": errors,
        "numbers": (comm.get_world_size(), comm.get_rank(), comm.get_local_size(), comm.get_local_rank()),
        "main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank, "array": list(range(rank))}),
        "all_gather_local": comm.all_gather(rank, group=comm.get_local_process_group()),
        "gather": comm.gather(rank * 10),
        "gather_to_2": comm.gather(rank * 10, dst=2),
        "seed": comm.shared_random_seed(),
        "mean": {k: v.item() for k, v in comm.reduce_dict(losses(rank)).items()},
        "sum": {k: v.item() for k, v in comm.reduce_dict(losses(rank), average=False).items()},
    }
    comm.synchronize()
    torch.save(results, f"{folder}/{rank}.pt")
    comm.destroy_process_groups()


def losses(rank):
    pairs = [("b", torch.tensor(float(rank))), ("a", torch.tensor(1.0))]
    return dict(pairs if rank % 2 else reversed(pairs))  # the order of the keys must not matter


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_processes):
    folder = tmp_path_factory.mktemp("comm")
    run_processes(work, 4, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


class TestFourProcesses:
    def test_numbers(self, results):
        assert [r["numbers"] for r in results] == [(4, 0, 2, 0), (4, 1, 2, 1), (4, 2, 2, 0), (4, 3, 2, 1)]
        assert [r["main"] for r in results] == [True, False, False, False]

    def test_errors(self, results):
        for result in results:
            first, second = result["errors"]
            assert "create_local_process_group" in first
            assert "4 processes cannot be divided into 3 per machine" in second

    def test_gathering(self, results):
        everything = [{"rank": rank, "array": list(range(rank))} for rank in range(4)]
        assert [r["all_gather"] for r in results] == [everything] * 4
        assert [r["all_gather_local"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
        assert [r["gather"] for r in results] == [[0, 10, 20, 30], [], [], []]
        assert [r["gather_to_2"] for r in results] == [[], [], [0, 10, 20, 30], []]

    def test_seed_is_the_main_processs(self, results):
        np.random.seed(0)
        assert {r["seed"] for r in results} == {int(np.random.randint(2**31))}

    def test_reducing(self, results):
        assert results[0]["mean"] == {"a": 1.0, "b": 1.5}
        assert results[0]["sum"] == {"a": 4.0, "b": 6.0}
