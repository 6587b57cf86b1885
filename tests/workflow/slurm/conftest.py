"""A Slurm cluster of one node, started for these tests and taken down after them.

The real daemons on the loopback interface, as root, without systemd, cgroups or accounting, with a
configuration, a key and ports of their own: a cluster that this machine may belong to is not
touched. Nothing is installed here; where the daemons are missing, the tests are skipped.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
SBIN = "/usr/sbin"

# More CPUs and memory than the machine has (config_overrides): most of a tiny job is starting up,
# which overlaps well, and what rules ask for is meant for real settings.
CONF = """\
ClusterName=leaveout-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Without cgroups, memory is watched by sampling: a job over its request is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 \
ThreadsPerCore=1 RealMemory=64000 Gres=gpu:fake:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""

# A second /dev/null for a GPU: Slurm insists on a character device.
GRES = "NodeName={host} Name=gpu Type=fake File={folder}/gpu0 Flags=nvidia_gpu_env\n"

# Loaded by every Python a job starts. It writes down which commands of leaveout began and which
# came to their end, and holds one back, or lets it eat memory, as a file beside it says. The plugin
# looks at the queue after 1 s, 11 s, 21 s and so on while nothing ends, which would be most of the
# time these tests take: in Snakemake itself, no pause is longer than 2 s.
SITECUSTOMIZE = """\
import atexit, json, os, sys, time
from pathlib import Path

here = Path(__file__).parent
words = sys.orig_argv
if "--profile" in words:
    import asyncio

    pause = asyncio.sleep
    asyncio.sleep = lambda seconds, *rest: pause(min(seconds, 2), *rest)
program = next((i for i, word in enumerate(words) if Path(word).name == "leaveout"), None)
if program is not None and len(words) > program + 1:
    command = words[program + 1]
    options = words[program + 2 :]
    out = options[options.index("--out") + 1]

    def note(event):
        with (here / "trace").open("a") as file:
            file.write(json.dumps([event, command, out, os.getpid()]) + "\\n")

    note("began")
    atexit.register(note, "ended")
    name = Path(out).parent.name + "-" + Path(out).stem
    if (here / f"hungry-{name}").exists():
        (here / f"hungry-{name}").unlink()  # the next attempt is modest
        ballast = b"x" * (3 << 30)
        time.sleep(60)
    while (here / f"hold-{name}").exists():
        time.sleep(0.05)
"""


def wait_until(done: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Wait until something holds, or fail saying what never did."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Cluster:
    """The daemons and how to speak to them."""

    folder: Path
    host: str = field(default_factory=lambda: socket.gethostname().split(".")[0])
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's programs find this cluster."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE", "SCANCEL"))
        }
        path = os.pathsep.join([str(self.folder / "bin"), kept.get("PATH", os.defpath), SBIN])
        return {**kept, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """Run one of Slurm's programs; return what it says."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def launch(self, name: str, *options: str) -> None:
        """Start a daemon in the foreground, as a child of this process."""
        # Its output must not be the test's, whose end somebody may be waiting for.
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [f"{SBIN}/{name}", *options],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """End a daemon."""
        if name in self.daemons:
            daemon = self.daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def answers(self, *command: str) -> bool:
        """Say whether a program succeeds, with the daemons that still start."""
        for name, daemon in self.daemons.items():
            assert daemon.poll() is None, (self.folder / f"{name}.out").read_text()
        done = subprocess.run(command, env=self.env, capture_output=True, timeout=60)
        return done.returncode == 0

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self.launch("slurmctld", "-D")
        wait_until(lambda: self.answers("scontrol", "ping"), "slurmctld answers")

    def node(self) -> str:
        """Return the node's state, such as ``idle``."""
        return self.call("sinfo", "--noheader", "--format=%t").rstrip("*")

    def jobs(self, *options: str) -> list[dict[str, str]]:
        """Return the jobs in the queue: id, state, and the rule and wildcards as the comment."""
        lines = self.call("squeue", "--noheader", "--format=%i|%T|%k", *options).splitlines()
        return [dict(zip(("id", "state", "comment"), x.split("|"), strict=True)) for x in lines]

    def up(self) -> None:
        """Write the configuration and start everything."""
        values = {
            "host": self.host,
            "folder": self.folder,
            "ctld_port": free_port(),
            "d_port": free_port(),
        }
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir()
        # The plugin takes SLURM_CONF from the environment of the `srun` inside a job.
        srun = self.folder / "bin" / "srun"
        conf = self.folder / "slurm.conf"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        (self.folder / "slurm.conf").write_text(CONF.format(**values))
        (self.folder / "gres.conf").write_text(GRES.format(**values))
        os.mknod(self.folder / "gpu0", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        key = self.folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(secrets.token_bytes(128))
        munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid"}
        munge |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        # --force: it warns of a socket in a temporary folder, which it would refuse otherwise
        munge_options = (f"--{k}={self.folder / v}" for k, v in munge.items())
        self.launch("munged", "--foreground", "--force", *munge_options)
        wait_until((self.folder / "munge.socket").exists, "munged has its socket")
        self.start_controller()
        self.launch("slurmd", "-D", "-N", self.host)
        wait_until(lambda: self.node() == "idle", "the node is idle")

    def clear(self) -> None:
        """Cancel what is in the queue."""
        self.call("scancel", "--me", "--signal=KILL", "--full")
        self.call("scancel", "--me")
        wait_until(lambda: not self.jobs(), "jobs end", 30)

    def down(self) -> None:
        """Cancel what is left and end everything."""
        if "slurmctld" in self.daemons and self.answers("scontrol", "ping"):
            self.clear()
        for name in ("slurmd", "slurmctld", "munged"):
            self.stop(name)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node: four CPUs and a GPU, neither of which need be there."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), SBIN])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"no Slurm on this machine: {', '.join(missing)} not found")
    if os.geteuid() != 0:
        pytest.skip("slurmd can only be started by root")
    # Munge's socket has to have a short path.
    folder = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(folder)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@dataclass
class Run:
    """Snakemake under the profile for Slurm in one clone, and what its jobs did."""

    cluster: Cluster
    clone: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    wait_until = staticmethod(wait_until)

    @property
    def notes(self) -> Path:
        """The folder of the trace and of the files that hold jobs back."""
        return self.clone / "notes"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake, in a process group of its own, its output in a file."""
        path = os.pathsep.join([str(self.clone / "src"), str(self.notes)])
        env = {k: v for k, v in self.cluster.env.items() if k != "SNAKEMAKE_PROFILE"}
        with self.output_path.open("a") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "snakemake", "--profile", "slurm"),
                    # a local disk shows files at once, and a tiny job takes no ten seconds
                    *("--latency-wait=5", "--slurm-init-seconds-before-status-checks=1"),
                    *arguments,
                ],
                cwd=self.clone,
                env={**env, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                # a shell that started the tests in the background had SIGINT ignored
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.processes.append(process)
        return process

    @property
    def output_path(self) -> Path:
        return self.clone / "snakemake.out"

    @property
    def output(self) -> str:
        """All that Snakemake has said in this clone."""
        return self.output_path.read_text()

    def finish(self, *arguments: str) -> str:
        """Run Snakemake to a good end; return what it said."""
        before = len(self.output) if self.output_path.exists() else 0
        process = self.start(*arguments)
        assert process.wait(timeout=400) == 0, self.output
        return self.output[before:]

    def hold(self, chunk: str) -> None:
        """Let the job of a chunk, such as ``lds-1-0``, wait before it does anything."""
        (self.notes / f"hold-{chunk}").touch()

    def release(self) -> None:
        """Let all jobs go on."""
        for path in self.notes.glob("hold-*"):
            path.unlink()

    def outs(self, event: str) -> list[str]:
        """Return the outputs of the commands that have begun, or ended, as often as they have."""
        trace = self.notes / "trace"
        lines = trace.read_text().splitlines() if trace.exists() else []
        return [out for what, _, out, _ in map(json.loads, lines) if what == event]

    def wait_for(self, event: str, out: str, times: int = 1) -> None:
        """Wait until the command that makes a file has begun or ended."""
        wait_until(lambda: self.outs(event).count(out) >= times, f"{out} {event}", 60)

    def job(self, comment: str) -> str:
        """Return the Slurm id of the one job in the queue whose comment contains this."""
        (found,) = [j["id"] for j in self.cluster.jobs() if comment in j["comment"]]
        return found

    def state(self, job: str) -> str:
        """Return the state of a job, ended or not."""
        (found,) = self.cluster.jobs("--states=all", f"--jobs={job}")
        return found["state"]


@pytest.fixture
def run(cluster: Cluster, clone: Path) -> Iterator[Run]:
    """Snakemake in a clone in which everything has run; its jobs are gone afterwards."""
    run = Run(cluster, clone)
    run.notes.mkdir()
    (run.notes / "sitecustomize.py").write_text(SITECUSTOMIZE)
    yield run
    for process in run.processes:
        process.kill()
        process.wait()
    cluster.clear()
