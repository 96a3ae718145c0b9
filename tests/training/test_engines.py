"""The engines: the same sweep in this process and on a Ray cluster of two nodes, of which one is killed meanwhile."""

import os
import socket
import time

import pytest
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.jsonl import read_rows
from labkit.models.profiles import PROFILES
from labkit.training.engines import RayExecutor, SerialExecutor, engine
from labkit.training.grid import Trial
from labkit.training.run import adjusted
from labkit.training.sweep import run_sweep
from labkit.training.trial import blank_row, run_trial
from tests.course.grading import classroom


def trials(n):
    return [Trial(profile=PROFILES["tiny"], seed=seed) for seed in range(n)]


@pytest.fixture(scope="module")
def ray():
    """Ray; the tests are skipped where it is missing, except in CI."""
    try:
        import ray
    except ImportError:
        assert not os.environ.get("CI"), "CI must have ray"
        pytest.skip("ray is not installed (pip install ray)")
    return ray


PORTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")


def _node():
    """Arguments of a node. With ports that are given, it does not wait 15 s at most for its agents to report theirs,
    which a busy machine does not keep."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = dict(zip(PORTS, (held.getsockname()[1] for held in sockets), strict=True))
    for held in sockets:
        held.close()
    return {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20, **ports}


def _started():
    """A cluster of two nodes, or None where Ray's own limit of 30 s a node was too short (a very busy machine)."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        made.add_node(**_node(), include_dashboard=False, include_log_monitor=False, no_monitor=True)
        made.add_node(**_node())
        return made
    except Exception as error:
        made.shutdown()
        if "timed out during startup" not in str(error):
            raise
        return None


@pytest.fixture(scope="module")
def cluster(ray):
    """A head and a second node, each with processes of its own and with a GPU that exists on paper only."""
    made = next(filter(None, (_started() for _ in range(3))), None)
    assert made, "Ray's processes did not start"
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def test_the_serial_engine_returns_and_raises_like_any_executor():
    with engine("local") as executor:
        assert isinstance(executor, SerialExecutor)
        assert list(executor.map(abs, [-1, 2])) == [1, 2]
        assert isinstance(executor.submit(int, "x").exception(), ValueError)


def test_an_unknown_engine_is_named():
    with pytest.raises(LabError, match="local, ray"), engine("slurm"):
        pass


def test_without_a_cluster_ray_is_refused_with_the_way_to_one(ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", lambda **options: (_ for _ in ()).throw(ConnectionError("nobody there")))
    with pytest.raises(LabError, match="nobody there.*ray start --head"), engine("ray"):
        pass


def test_a_real_trial_on_ray_is_the_trial_of_this_process(ray, cluster, weights, rows, profile, tmp_path, monkeypatch):
    trial = Trial(profile=adjusted(profile, kind="lora"), seed=1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})  # as on a cluster without GPUs

    def work(trial):
        return run_trial(trial, weights=weights, rows=(rows, rows[:6]))

    with engine("ray") as executor:
        assert (executor.gpus, executor.cpus, executor.capacity) == (0, 1, 3)
        run_sweep([trial], tmp_path / "ray.jsonl", executor=executor, run=work)
    (there,) = read_rows(tmp_path / "ray.jsonl")
    here = work(trial)
    assert there["error"] is None
    for name in ("curve", "heldout_loss_before", "heldout_loss_after"):
        assert there[name] == pytest.approx(here[name], rel=1e-4)


def test_grading_re_runs_on_ray_what_it_re_runs_here(ray, cluster, bubblewrap, tmp_path):
    """``labkit grade --rerun --engine ray``: both sandboxes of the class on the cluster, the same tables as here."""
    classroom.save_honest_and_forged(tmp_path / "in")
    tables = []
    for name in ("local", "ray"):
        command = ["grade", str(tmp_path / "in"), "--out", str(tmp_path / name), "--rerun", "--engine", name]
        result = CliRunner().invoke(app, command)
        assert result.exception is None, repr(result.exception)
        tables.append([(tmp_path / name / file).read_bytes() for file in ("grades.csv", "flags.csv")])
    assert tables[0] == tables[1]
    assert b"forged,00_start_here,re-run disagrees,q0_2" in tables[1][1]


def test_a_node_that_dies_loses_and_repeats_nothing(ray, cluster, tmp_path):
    path, begun, head = tmp_path / "r.jsonl", tmp_path / "begun", cluster.head_node.node_id
    begun.mkdir()

    def nodes():
        return {file.name.split("-")[0] for file in begun.iterdir()}

    def work(trial):
        node = ray.get_runtime_context().get_node_id()
        (begun / f"{node}-{trial.seed}").touch()
        for _ in range(600):  # until both nodes are at work
            if len(nodes()) == 2:
                break
            time.sleep(0.1)
        if node != head:
            time.sleep(60)  # it will not live to see the end of this
        if trial.seed == 5:
            raise ValueError("this trial fails")
        return blank_row(trial) | {"node": node, "gpus": len(ray.get_gpu_ids())}

    def watch(row, now):
        if now.ran == 1:
            (other,) = cluster.worker_nodes
            cluster.remove_node(other, allow_graceful=False)

    with engine("ray") as executor:
        assert isinstance(executor, RayExecutor)
        assert (executor.gpus, executor.capacity) == (2, 3)  # one trial a GPU, and one call waiting
        done = run_sweep(trials(8), path, executor=executor, run=work, on_row=watch)
    rows = read_rows(path)
    assert len(path.read_text().splitlines()) == len(rows) == 8
    assert sorted(row["settings"]["seed"] for row in rows) == list(range(8))
    assert (done.ran, done.failed) == (8, 1)
    assert "this trial fails" in next(row["error"] for row in rows if row["settings"]["seed"] == 5)
    starts = [file.name.split("-") for file in begun.iterdir()]
    lost = {seed for node, seed in starts if node != head}
    assert lost  # the second node had begun at least one trial,
    assert lost <= {seed for node, seed in starts if node == head}  # which began again on the first
    assert {row["node"] for row in rows if not row["error"]} == {head}
    assert {row["gpus"] for row in rows if not row["error"]} == {1}
    assert run_sweep(trials(8), path, run=work).ran == 0
