"""What this processor can do, found out by trying, and what follows from it.

OpenVINO's own list of capabilities names bf16 on processors (and under ONEDNN_MAX_CPU_ISA
limits) that have no such instructions, where it then fails or crawls. So a small multiplication
is compiled, and the kernel that was chosen for it tells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset15 as op

_PROBE_SIZE = 64


class Precision(StrEnum):
    """Arithmetic of multiplications (sums are always float32)."""

    F32 = "f32"
    BF16 = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Features that decide which arithmetic is quick."""

    bf16: bool  # has bf16 multiplications (AVX512-BF16 or AMX)
    amx: bool  # has matrix tiles
    num_cores: int  # that this process may use


def examine_cpu(core: ov.Core) -> Cpu:
    """Try bf16 out. Takes some 50 ms."""
    kernel = _bf16_kernel(core)
    bf16 = kernel.startswith("brgemm") and kernel.endswith("bf16")
    return Cpu(bf16=bf16, amx=bf16 and "amx" in kernel, num_cores=_num_cores())


def best_precision(cpu: Cpu) -> Precision:
    """Return bf16 where the hardware multiplies it, else f32."""
    return Precision.BF16 if cpu.bf16 else Precision.F32


def available_bytes() -> int:
    """Return the memory that can be taken without swapping: the system's, or less by cgroup."""
    available = _meminfo_bytes("MemAvailable")
    limit, used = (_cgroup_bytes(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        available = min(available, max(limit - used, 0))
    return available


def _bf16_kernel(core: ov.Core) -> str:
    """Return the name of the kernel that a bf16 multiplication gets, such as brgemm_avx512_bf16."""
    x = op.parameter([-1, _PROBE_SIZE], ov.Type.f32)
    weights = op.constant(np.ones((_PROBE_SIZE, _PROBE_SIZE), np.float32))
    model = ov.Model([op.result(op.matmul(x, weights, False, True))], [x], "probe")
    try:
        compiled = core.compile_model(
            model,
            "CPU",
            {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1},
        )
        compiled(np.ones((2, _PROBE_SIZE), np.float32))  # the kernel is chosen at the first call
    except RuntimeError:
        return ""
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].value == "FullyConnected":
            return str(info["primitiveType"].value)
    return ""


def _num_cores() -> int:
    """Return the cores that this process may use, whole ones if a quota limits it."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def _meminfo_bytes(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/meminfo has no line {key}")


def _cgroup_bytes(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
