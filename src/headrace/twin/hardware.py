"""GPUs that the twin knows, from their makers' data sheets (dense figures).

A100, H100, H200, B200, L40S, A10G, L4: NVIDIA's data sheets of these names; B200 as in an
HGX board (180 GB); A10G as in AWS's G5 instances (half an A10's tensor rate). The links are NVLink
where there is one (half of the two-way figure), PCIe otherwise. ``cpu`` is no data sheet: two
cores with AMX, as measured with the default executor (benchmarks/results/executor.md), scaled so
that ``Efficiency`` gives what was measured.
"""

from __future__ import annotations

from headrace.core.costs.roofline import Gpu

GIGA = 1e9
TERA = 1e12
PCIE4 = 32 * GIGA

_GPUS = (
    Gpu(
        name="a100-80g",
        memory_bytes=80 * GIGA,
        bandwidth=2.039 * TERA,
        bf16_flops=312 * TERA,
        fp8_flops=0,
        link_bandwidth=300 * GIGA,
    ),
    Gpu(
        name="h100-sxm",
        memory_bytes=80 * GIGA,
        bandwidth=3.35 * TERA,
        bf16_flops=989 * TERA,
        fp8_flops=1979 * TERA,
        link_bandwidth=450 * GIGA,
    ),
    Gpu(
        name="h200",
        memory_bytes=141 * GIGA,
        bandwidth=4.8 * TERA,
        bf16_flops=989 * TERA,
        fp8_flops=1979 * TERA,
        link_bandwidth=450 * GIGA,
    ),
    Gpu(
        name="b200",
        memory_bytes=180 * GIGA,
        bandwidth=7.7 * TERA,
        bf16_flops=2250 * TERA,
        fp8_flops=4500 * TERA,
        link_bandwidth=900 * GIGA,
    ),
    Gpu(
        name="l40s",
        memory_bytes=48 * GIGA,
        bandwidth=0.864 * TERA,
        bf16_flops=362 * TERA,
        fp8_flops=733 * TERA,
        link_bandwidth=PCIE4,
    ),
    Gpu(
        name="a10g",
        memory_bytes=24 * GIGA,
        bandwidth=0.6 * TERA,
        bf16_flops=70 * TERA,
        fp8_flops=0,
        link_bandwidth=PCIE4,
    ),
    Gpu(
        name="l4",
        memory_bytes=24 * GIGA,
        bandwidth=0.3 * TERA,
        bf16_flops=121 * TERA,
        fp8_flops=242 * TERA,
        link_bandwidth=PCIE4,
    ),
    Gpu(
        name="cpu",
        memory_bytes=16 * GIGA,
        bandwidth=0.03 * TERA,
        bf16_flops=1.4 * TERA,
        fp8_flops=0,
        link_bandwidth=GIGA,
    ),
)

GPUS = {gpu.name: gpu for gpu in _GPUS} | {
    alias: gpu
    for gpu in _GPUS
    for alias in {"a100-80g": ("a100",), "h100-sxm": ("h100",)}.get(gpu.name, ())
}
"""By name, and by the short names that people use."""
