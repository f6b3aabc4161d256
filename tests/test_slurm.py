"""The sbatch recipe, with stubs in place of SLURM, Ray and linscale that write down how they are called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).parent.parent / "configs" / "slurm" / "ray.sbatch"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a bash script")

# Every stub notes its words. srun runs the command of the step once for each machine and passes SIGTERM on.
STUBS = {
    "srun": """
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
echo "srun ${options[*]}" >> "$CALLS"
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node SLURM_CPUS_ON_NODE=96 SLURM_GPUS_ON_NODE=8 setsid "$@" 2> /dev/null &
    groups+=(-$!)
done
trap 'kill -- "${groups[@]}"' TERM
wait; wait
""",
    "ray": """
echo "ray $*" >> "$CALLS"
case $1 in
    start) exec sleep 100 ;;
    status) grep '^ray start' "$CALLS" | sed 's/.*/ 1 node_0/' ;;
esac
""",
    "linscale": """
echo "linscale $*" >> "$CALLS"
trap 'echo "linscale saves" >> "$CALLS"; sleep 0.3; exit 0' TERM
for ((i = 0; i < TENTHS; i++)); do sleep 0.1; done
exit 3
""",
    "scontrol": 'echo "scontrol $*" >> "$CALLS"',
    "sleep": '[[ $1 == 2 ]] && set -- 0.1; exec /bin/sleep "$1"',  # between two looks of the recipe
    "hostname": "echo 10.0.0.7 fe80::1",
}


@pytest.fixture
def start(tmp_path):
    """A function that starts the recipe as a job of two machines whose study takes so many tenths of a second."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls").touch()

    def run(tenths):
        slurm = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NUM_NODES": "2"}
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {**os.environ, **slurm, "PATH": path, "CALLS": str(tmp_path / "calls"), "TENTHS": str(tenths)}
        words = ["bash", str(RECIPE), "my.toml", "--out", "/shared/my runs"]
        return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)

    return run


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def test_it_is_bash():
    subprocess.run(["bash", "-n", str(RECIPE)], check=True)


def test_it_starts_a_cluster_runs_the_study_and_ends_with_its_status(start, tmp_path):
    job = start(tenths=1)
    assert (job.wait(timeout=30), job.stderr.read()) == (3, "")
    made = calls(tmp_path)
    address = "10.0.0.7:24567"
    size = "--num-cpus=96 --num-gpus=8 --disable-usage-stats --block"
    [step] = [call for call in made if call.startswith("srun")]
    assert step.startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 ")
    starts = sorted(call for call in made if call.startswith("ray start"))
    assert starts == [
        f"ray start --address={address} {size}",
        f"ray start --head --node-ip-address=10.0.0.7 --port=24567 --include-dashboard=false {size}",
    ]
    study = f"linscale study run my.toml --out /shared/my runs --executor ray --address {address}"
    assert made[-1] == study  # so nothing saved, and nothing queued again
    assert made.index(f"ray status --address={address}") < made.index(study)


def test_sigterm_has_the_study_saved_and_the_job_queued_again(start, tmp_path):
    job = start(tenths=300)
    deadline = time.monotonic() + 30
    while not any(call.startswith("linscale study run") for call in calls(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # for the stub to set its trap
    job.send_signal(signal.SIGTERM)
    assert (job.wait(timeout=30), job.stderr.read()) == (0, "")
    assert calls(tmp_path)[-2:] == ["linscale saves", "scontrol requeue 1234567"]


def test_machines_that_do_not_join_are_an_error(start, tmp_path):
    (tmp_path / "srun").write_text("#!/usr/bin/env bash\nexit 1\n")
    job = start(tenths=1)
    assert job.wait(timeout=30) == 1
    assert job.stderr.read().startswith("ray.sbatch: 0 of 2 machines joined the Ray cluster at 10.0.0.7:24567 in ")
    assert not any(call.startswith("linscale") for call in calls(tmp_path))
