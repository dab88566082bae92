"""The same bytes whatever may differ between two runs: threads, kills, processors, libraries.

Every model is trained to its end in several ways (see digests.py): by its reference and on the CPU
in processes of their own, as if on other processors, and on CUDA's simulator here. Numba compiles
for the processor it is given; OpenBLAS, NumPy and the C library each choose their functions by the
processor, and can be made to take those of another. What cannot be had is a processor that can do
more than this one: such targets are skipped. Devices are not compared with each other, for they sum
in different orders; tests/models holds each against an oracle.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import digests
import llvmlite.binding as llvm
import numpy as np
import pytest
from conftest import environment
from numpy._core._multiarray_umath import __cpu_dispatch__ as numpy_dispatched
from numpy._core._multiarray_umath import __cpu_features__ as numpy_features

from msgd.models import MODELS

x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 targets")


def processor(name):
    """Return the environment in which Numba compiles for ``name`` and for no more."""
    return {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}


# What each needs of this processor, what tells it apart, and the environment. The kernels of
# "nehalem" and "generic" have no fma: the C library's function stands in.
PROCESSORS = {
    "znver4": ({"avx512f", "avx512vl", "avx512bf16", "gfni"}, ["vfmadd", "zmm", "ymm"]),
    "skylake-avx512": ({"avx512f", "avx512vl"}, ["vfmadd", "zmm", "ymm"]),
    "haswell": ({"avx2", "fma"}, ["vfmadd", "ymm"]),
    "nehalem": (set(), []),
    "generic": (set(), []),
}
UNKNOWN = "is not a recognized processor"  # what LLVM says of a name it does not know
# The functions of libraries, those of the oldest processors.
OLD_BLAS = {"OPENBLAS_CORETYPE": "Prescott"}
OLD_NUMPY = {
    "NPY_DISABLE_CPU_FEATURES": " ".join(n for n in numpy_dispatched if numpy_features.get(n))
}
OLD_LIBM = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-FMA4"}


def trained(float_x, device, models, **changes):
    """Return what digests.py prints in a process whose environment is changed."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("digests.py"), float_x, device, *models],
        capture_output=True,
        text=True,
        env=environment(NUMBA_NUM_THREADS="4", **changes),
        check=False,
    )
    if UNKNOWN in done.stderr:
        pytest.skip(f"this LLVM does not know {changes['NUMBA_CPU_NAME']}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def skip_unless_here(name):
    here = {feature for feature, has in llvm.get_host_cpu_features().items() if has}
    if missing := PROCESSORS[name][0] - here:
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")


def the_only(by_way):
    """Return the digest that a training has by all ways."""
    assert len(set(by_way.values())) == 1, by_way
    return next(iter(by_way.values()))


def all_the_same(record_property, *runs):
    """Check that in ``runs``, {case: {way: digest}}, a case always has one digest.

    For docs/trust.py the trainings of the last run are counted, which the others are held against.
    """
    found = [{case: the_only(by_way) for case, by_way in run.items()} for run in runs]
    assert all(run == found[0] for run in found)
    record_property("cases", sum(map(len, runs[-1].values())))


LINEAR = ["logistic_regression", "logistic_cg"]


@x86
def test_logistic_regression_for_haswell_and_old_libraries(record_property):
    """The short one; below, all models for all targets."""
    skip_unless_here("haswell")
    here = trained("float32", "cpu", LINEAR)
    there = trained("float32", "cpu", LINEAR, **processor("haswell"), **OLD_BLAS, **OLD_NUMPY)
    assert there["instructions"] == PROCESSORS["haswell"][1]
    all_the_same(record_property, here["digests"], there["digests"])


@x86
def test_conjugate_gradients_take_no_sum_from_blas(record_property):
    """In float64, where a last bit shows that float32 would round away."""
    found = [
        trained("float64", "cpu", ["logistic_cg"], OPENBLAS_CORETYPE=name)["digests"]
        for name in ("Haswell", "Prescott")
    ]
    all_the_same(record_property, *found)


QUICK = {"logistic_regression", "da"}


@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize(
    "model", [m if m in QUICK else pytest.param(m, marks=pytest.mark.trust) for m in MODELS]
)
def test_cuda_kernels_on_the_simulator(record_property, model, float_x):
    cases = digests.small_cases(model, "cuda", np.dtype(float_x).type)
    all_the_same(record_property, {number: case.digests() for number, case in enumerate(cases)})


@pytest.fixture(scope="module")
def here():
    """{case: {way: digest}} of all models on this processor, by floatX and device."""
    return {
        (float_x, device): trained(float_x, device, MODELS)["digests"]
        for float_x in ("float32", "float64")
        for device in ("cpu", "reference")
    }


@x86
@pytest.mark.targets
@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("name", "float_x"),
    [*((name, "float32") for name in PROCESSORS), ("haswell", "float64"), ("nehalem", "float64")],
)
def test_every_model_for_other_processors(here, record_property, name, float_x, device):
    skip_unless_here(name)
    there = trained(float_x, device, MODELS, **processor(name))
    assert there["instructions"] == PROCESSORS[name][1]
    all_the_same(record_property, here[float_x, device], there["digests"])


@x86
@pytest.mark.targets
@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("library", [OLD_BLAS, OLD_NUMPY], ids=["blas", "numpy"])
def test_every_model_with_the_libraries_of_other_processors(
    here, record_property, library, float_x
):
    there = trained(float_x, "cpu", MODELS, **library)["digests"]
    all_the_same(record_property, here[float_x, "cpu"], there)


@x86
@pytest.mark.targets
def test_every_model_with_the_c_library_of_a_processor_without_fma(here, record_property):
    """In float32 only: in float64 exp and tanh are the C library's, whose last bit may differ."""
    there = trained("float32", "cpu", MODELS, **OLD_LIBM)["digests"]
    all_the_same(record_property, here["float32", "cpu"], there)
