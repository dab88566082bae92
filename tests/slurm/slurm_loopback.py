"""A one-node Slurm on the loopback interface, without systemd, cgroups or accounting.

    python tests/slurm/slurm_loopback.py install       apt-get what is missing of Slurm
    python tests/slurm/slurm_loopback.py up FOLDER     start it; all its state lies in FOLDER
    python tests/slurm/slurm_loopback.py down FOLDER   stop it

It needs root. Its daemons listen on 127.0.0.1 only. One at a time: ``up`` stops an earlier one.
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

# Clients find their configuration here and nowhere else: the jobs of Snakemake's plugin drop the
# variable SLURM_CONF before they call srun.
SLURM_CONF = Path("/etc/slurm/slurm.conf")
LINKED_CONF = "msgd-loopback.conf"  # by this name a link is known to be ours, not a real cluster's
PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
CONTROLLER_PORT, NODE_PORT = 16817, 16818
GPU_DEVICES = ("/dev/zero", "/dev/full")  # Slurm asks of a GPU only that its device file exists

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
# Listen on SlurmctldHost's and NodeAddr's addresses alone.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A preempted job comes back when its credential has expired: in seconds, not in two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=10
# Processes are found through /proc: a container seldom has cgroups to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# As strict as a cluster may be: a preempted job comes back only if it asked to.
JobRequeue=0
# A new job starts within seconds, and a cancelled one is killed within seconds.
SchedulerParameters=sched_interval=2
KillWait=2
# Finished jobs stay in squeue, which without accounting is the only place to ask for them.
MinJobAge=3600
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/controller
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/node
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES State=UP
PartitionName=accelerated Nodes=ALL State=UP
"""


def missing():
    """Return what this machine lacks to run a Slurm of its own, or ""."""
    if os.geteuid() != 0:
        return "root"
    if os.path.lexists(SLURM_CONF) and not _is_linked():
        return f"a machine without a Slurm of its own ({SLURM_CONF} exists)"
    return ", ".join(program for program in PROGRAMS if not shutil.which(program))


def install():
    """Install the Debian packages of the programs that are missing."""
    packages = {package for program, package in PROGRAMS.items() if not shutil.which(program)}
    if packages:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt_get = ["apt-get", "-q", "-y"]
        subprocess.run([*apt_get, "update"], check=True, env=environment)
        command = [*apt_get, "install", "--no-install-recommends", *sorted(packages)]
        subprocess.run(command, check=True, env=environment)


def up(folder):
    """Start Slurm with its state in the existing ``folder`` and wait until its node is idle."""
    folder = Path(folder).resolve()
    folder.chmod(0o755)  # munged insists that everybody may reach its socket
    if _is_linked():
        down(SLURM_CONF.readlink().parent)
    _write_configuration(folder)
    try:
        _start_munged(folder)
        # -f: they look for gres.conf beside it; -c: what an earlier life left there is forgotten.
        options = ["-c", "-f", folder / LINKED_CONF]
        subprocess.run(["slurmctld", *options], check=True)
        _wait_for("the controller", ["scontrol", "ping"])
        subprocess.run(["slurmd", *options], check=True)
        _wait_for("an idle node", ["sinfo", "--noheader", "--states=idle"], says="idle")
    except (subprocess.CalledProcessError, TimeoutError):
        for path in sorted(folder.glob("*.log")):
            print(f"--- {path}", *path.read_text().splitlines()[-20:], sep="\n")
        down(folder)
        raise


def down(folder):
    """Stop the daemons whose state lies in ``folder``, and their jobs, which would outlive them."""
    folder = Path(folder).resolve()
    if _is_linked() and SLURM_CONF.readlink().parent == folder:
        _cancel_jobs()
    for daemon in ("slurmd", "slurmctld", "munged"):
        path = folder / f"{daemon}.pid"
        if path.exists() and _is_running(pid := int(path.read_text()), daemon):
            os.kill(pid, signal.SIGTERM)
            _wait_until(f"the end of {daemon}", lambda p=pid, d=daemon: not _is_running(p, d))
    if _is_linked() and SLURM_CONF.readlink().parent == folder:
        SLURM_CONF.unlink()


def _cancel_jobs():
    if subprocess.run(["scancel", "--user=root"], capture_output=True, check=False).returncode:
        return  # nobody answers: there are no daemons
    squeue = ["squeue", "--noheader"]
    _wait_until("the end of all jobs", lambda: not subprocess.check_output(squeue))


def _is_linked():
    return SLURM_CONF.is_symlink() and SLURM_CONF.readlink().name == LINKED_CONF


def _write_configuration(folder):
    for name in ("controller", "node"):
        (folder / name).mkdir(exist_ok=True)
    text = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().split(".")[0],
        controller_port=CONTROLLER_PORT,
        node_port=NODE_PORT,
        cpus=os.cpu_count(),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 8 // 10 >> 20,
        gpus=len(GPU_DEVICES),
    )
    (folder / LINKED_CONF).write_text(text)
    gpus = "".join(f"Name=gpu File={device}\n" for device in GPU_DEVICES)
    (folder / "gres.conf").write_text(gpus)
    SLURM_CONF.parent.mkdir(exist_ok=True)
    SLURM_CONF.symlink_to(folder / LINKED_CONF)


def _start_munged(folder):
    """Start the daemon that vouches for who sends a message, with a key of its own."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    options = {
        "socket": folder / "munge.socket",
        "key-file": key,
        "pid-file": folder / "munged.pid",
        "log-file": folder / "munged.log",
        "seed-file": folder / "munge.seed",
    }
    subprocess.run(["munged", *(f"--{name}={path}" for name, path in options.items())], check=True)


def _wait_for(what, command, says=""):
    """Wait until ``command`` succeeds and prints ``says``."""

    def succeeds():
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode == 0 and says in done.stdout

    _wait_until(what, succeeds)


def _wait_until(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)


def _is_running(pid, daemon):
    """Whether process ``pid`` is ``daemon``, not some later process or one that has ended."""
    try:
        _, name, rest = Path(f"/proc/{pid}/stat").read_text().replace(")", "(").split("(")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return name == daemon and rest.split()[0] != "Z"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("install", "up", "down"))
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.verb == "install":
        install()
    elif arguments.folder is None:
        parser.error(f"{arguments.verb} needs FOLDER")
    elif lacking := missing():
        parser.exit(1, f"this needs {lacking}\n")
    else:
        {"up": up, "down": down}[arguments.verb](arguments.folder)


if __name__ == "__main__":
    main()
