"""Collect what a machine with a GPU and no network lacks, for benchmarks/gpu_day.py.

    python benchmarks/gpu_day_pack.py [--python-version 3.12] [--with llvmlite] [--mebibytes 60]

Downloads wheels for Linux on x86-64 through pip, as pip is configured, in the versions of
constraints.txt, and puts them with mnist.pkl.gz into gpu-day/packed. What would go over the limit
is left out, and listed. On the other machine gpu_day.py installs only what is missing there.
"""

import argparse
import email
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import ROOT
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

PACKED = ROOT / "gpu-day" / "packed"
MNIST = ROOT / "results" / "downloads" / "mnist.pkl.gz"

# In the order of importance. PyTorch, numba, llvmlite, pandas, matplotlib, pytest and the libraries
# of CUDA are expected there; numba-cuda and numpy because their versions matter.
PACKAGES = [
    *("numpy", "numba-cuda", "pooch", "platformdirs"),
    *("jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "attrs"),
    *("tqdm", "tabulate", "pytest", "pytest-xdist", "execnet", "pluggy", "iniconfig", "pygments"),
    *("numba", "cuda-bindings", "cuda-core", "cuda-pathfinder"),
]
# Named with --with they come first, and others stay behind.
TOO_LARGE = {
    "llvmlite": "57 MiB; numba 0.68 works with the machine's own if that is 0.50",
    "nvidia-nvvm": "59 MiB; libnvvm is part of every CUDA toolkit, found through CUDA_HOME",
    "nvidia-cuda-nvrtc": "86 MiB; comes with PyTorch",
    "nvidia-nvjitlink": "39 MiB; comes with PyTorch",
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def download(name, folder, python_version):
    """Put the wheel of package ``name`` into ``folder``; return its path, or why there is none."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += ["--constraint", ROOT / "constraints.txt", "--dest", folder, name]
    before = set(folder.glob("*.whl"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    new = set(folder.glob("*.whl")) - before
    if done.returncode or len(new) != 1:
        lines = done.stderr.strip().splitlines() or [f"pip brought {len(new)} files"]
        return f"pip: {lines[-1]}"
    return new.pop()


def pack(folder, names, python_version, limit, data=MNIST):
    """Fill ``folder`` with ``data`` and with the wheels of ``names`` that fit into ``limit`` bytes.

    Returns, and writes to packed.json, {"files": {name: bytes}, "left_out": {package: why},
    "code": what provenance says of the code}.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not data.exists():
        from msgd.data.download import download_mnist

        download_mnist(data)
    shutil.copyfile(data, folder / data.name)
    files = {data.name: data.stat().st_size}
    left_out = {name: why for name, why in TOO_LARGE.items() if name not in names}
    for name in names:
        wheel = download(name, folder, python_version)
        if isinstance(wheel, str):
            left_out[name] = wheel
            continue
        size = wheel.stat().st_size
        if sum(files.values()) + size > limit:
            wheel.unlink()
            left_out[name] = f"{size / 2**20:.1f} MiB more would be over {limit / 2**20:.0f} MiB"
            continue
        files[wheel.name] = size
    from msgd.provenance import describe_code

    # The copy on the other machine may be no clone, so what git says is said here.
    packed = {"files": files, "left_out": left_out, "code": describe_code()}
    (folder / "packed.json").write_text(json.dumps(packed, indent=2) + "\n")
    return packed


def install(packed, target):
    """Install of the wheels in ``packed`` what this machine needs, into ``target``.

    Needed is what is not there, or in a version that pyproject.toml or another carried package
    does not allow. A wheel that is for another machine, or whose own needs can be met neither here
    nor from the others, stays out.
    Returns {"installed": {package: version}, "left_out": {package: why}}.
    """
    wheels, left_out = usable_wheels([Wheel(path) for path in sorted(packed.glob("*.whl"))])
    needs = [*project_needs(), *(need for wheel in wheels.values() for need in wheel.needs)]
    chosen = {}
    for name, wheel in wheels.items():
        own = installed_version(name)
        named = [need for need in needs if canonicalize_name(need.name) == name]
        if own is None or not all(need.specifier.contains(own) for need in named):
            chosen[name] = wheel
        else:
            left_out[name] = f"{name} {own} is there"
    if chosen:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", target]
        subprocess.run([*command, *(wheel.path for wheel in chosen.values())], check=True)
    versions = {name: wheel.version for name, wheel in chosen.items()}
    return {"installed": versions, "left_out": left_out}


def usable_wheels(wheels):
    """Return ({package: Wheel} of what can be used here, {package: why not} of the others)."""
    left_out = {
        wheel.name: f"{wheel.path.name} is not for this Python or machine"
        for wheel in wheels
        if not wheel.is_for_here
    }
    usable = {wheel.name: wheel for wheel in wheels if wheel.name not in left_out}
    while True:  # each that is left out can take others with it
        for name, wheel in usable.items():
            unmet = [need for need in wheel.needs if not is_met(need, usable)]
            if unmet:
                left_out[name] = f"{name} {wheel.version} needs {unmet[0]}"
                del usable[name]
                break
        else:
            return usable, left_out


class Wheel:
    """A wheel file: its path, the package's ``name`` and ``version``, and its ``needs``."""

    def __init__(self, path):
        self.path = path
        self.name, version, _, tags = parse_wheel_filename(path.name)
        self.version = str(version)
        self.is_for_here = not tags.isdisjoint(sys_tags())
        with zipfile.ZipFile(path) as archive:
            (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            headers = email.message_from_bytes(archive.read(metadata))
        self.needs = requirements(headers.get_all("Requires-Dist") or [])


def requirements(lines):
    """Return the Requirements in ``lines`` that hold on this machine, without extras."""
    found = map(Requirement, lines)
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def project_needs():
    """Return the Requirements of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return requirements(project["dependencies"])


def is_met(need, wheels):
    """Tell whether ``need`` is met by a wheel or by what this machine has."""
    carried = wheels.get(canonicalize_name(need.name))
    versions = [installed_version(need.name), carried.version if carried else None]
    return any(found and need.specifier.contains(found) for found in versions)


def installed_version(name):
    """Return the version of package ``name`` on this machine, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main():
    """Pack, and print what is in it and what is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=PACKED)
    parser.add_argument("--python-version", default="3.12", help="the other machine's")
    parser.add_argument("--with", dest="first", nargs="*", default=[], metavar="PACKAGE")
    parser.add_argument("--without", nargs="*", default=[], metavar="PACKAGE")
    parser.add_argument("--mebibytes", type=float, default=60)
    options = parser.parse_args()
    names = [*options.first, *(name for name in PACKAGES if name not in options.first)]
    names = [name for name in names if name not in options.without]
    limit = int(options.mebibytes * 2**20)
    packed = pack(options.folder, names, options.python_version, limit)
    for file, size in packed["files"].items():
        print(f"{size / 2**20:6.1f} MiB  {file}")
    print(f"{sum(packed['files'].values()) / 2**20:6.1f} MiB in all, in {options.folder}")
    for name, why in packed["left_out"].items():
        print(f"left out: {name}: {why}")


if __name__ == "__main__":
    main()
