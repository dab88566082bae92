"""The same bytes on every x86 processor: trainings as if on another, in processes of their own.

Numba compiles for the processor it is given; OpenBLAS, NumPy and the C library each choose their
functions by the processor, and can be made to take those of another. What cannot be had is a
processor that can do more than this one: such targets are skipped.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from conftest import environment
from numpy._core._multiarray_umath import __cpu_dispatch__ as numpy_dispatched
from numpy._core._multiarray_umath import __cpu_features__ as numpy_features

from msgd.models import MODELS

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 targets")


def processor(name):
    """Return the environment in which Numba compiles for ``name`` and for no more."""
    return {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}


# What each needs of this processor, what tells it apart, and the environment. The kernels of
# "nehalem" and "generic" have no fma: the C library's function stands in.
PROCESSORS = {
    "skylake-avx512": ({"avx512f", "avx512vl"}, ["vfmadd", "zmm", "ymm"]),
    "haswell": ({"avx2", "fma"}, ["vfmadd", "ymm"]),
    "nehalem": (set(), []),
    "generic": (set(), []),
}
# The functions of libraries, those of the oldest processors.
OLD_BLAS = {"OPENBLAS_CORETYPE": "Prescott"}
OLD_NUMPY = {
    "NPY_DISABLE_CPU_FEATURES": " ".join(n for n in numpy_dispatched if numpy_features.get(n))
}
OLD_LIBM = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-FMA4"}


def trained(float_x, models, **changes):
    """Return what tests/targets.py prints in a process whose environment is changed."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("targets.py"), float_x, *models],
        capture_output=True,
        text=True,
        env=environment(**changes),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def skip_unless_here(name):
    here = {feature for feature, has in llvm.get_host_cpu_features().items() if has}
    if missing := PROCESSORS[name][0] - here:
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")


LINEAR = ["logistic_regression", "logistic_cg"]


def test_logistic_regression_for_haswell_and_old_libraries():
    """The short one; below, all models for all targets."""
    skip_unless_here("haswell")
    here = trained("float32", LINEAR)
    there = trained("float32", LINEAR, **processor("haswell"), **OLD_BLAS, **OLD_NUMPY)
    assert there["instructions"] == PROCESSORS["haswell"][1]
    assert there["digests"] == here["digests"]


def test_conjugate_gradients_take_no_sum_from_blas():
    """In float64, where a last bit shows that float32 would round away."""
    found = [
        trained("float64", ["logistic_cg"], OPENBLAS_CORETYPE=name)["digests"]
        for name in ("Haswell", "Prescott")
    ]
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def here():
    """The digests of all models on this processor, by floatX."""
    return {float_x: trained(float_x, MODELS)["digests"] for float_x in ("float32", "float64")}


@pytest.mark.targets
@pytest.mark.parametrize(
    ("name", "float_x"),
    [*((name, "float32") for name in PROCESSORS), ("haswell", "float64"), ("nehalem", "float64")],
)
def test_every_model_for_other_processors(here, name, float_x):
    skip_unless_here(name)
    there = trained(float_x, MODELS, **processor(name))
    assert there["instructions"] == PROCESSORS[name][1]
    assert there["digests"] == here[float_x]


@pytest.mark.targets
@pytest.mark.parametrize("float_x", ["float32", "float64"])
@pytest.mark.parametrize("library", [OLD_BLAS, OLD_NUMPY], ids=["blas", "numpy"])
def test_every_model_with_the_libraries_of_other_processors(here, library, float_x):
    assert trained(float_x, MODELS, **library)["digests"] == here[float_x]


@pytest.mark.targets
def test_every_model_with_the_c_library_of_a_processor_without_fma(here):
    """In float32 only: in float64 exp and tanh are the C library's, whose last bit may differ."""
    assert trained("float32", MODELS, **OLD_LIBM)["digests"] == here["float32"]
