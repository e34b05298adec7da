"""Chips: what they could do at best, from their makers' data sheets; and what a CPU measurably does."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Peak figures of one accelerator.

    Attributes:
        name: the maker's name.
        bf16_flops: dense matrix FLOP/s in bfloat16.
        memory_bytes: device memory.
        memory_bandwidth: bytes/s to that memory.
        source: where the figures are from.
        link_bandwidth: bytes/s that it sends to other chips of its slice or node with all links at once.
        node_bandwidth: bytes/s that it sends to other nodes, its share of the node's network cards (GPUs).
        clock: Hz of the cycles that a TPU's compiler counts; not in the data sheets, assumed from the peak and the
            units that make it.
        vector_memory_bytes: of memory on the chip that arrays are kept in rather than in device memory where they fit
            (a TPU's VMEM, of a core; `jax.experimental.pallas.tpu.get_tpu_info` knows it).
    """

    name: str
    bf16_flops: float
    memory_bytes: float
    memory_bandwidth: float
    source: str
    link_bandwidth: float | None = None
    node_bandwidth: float | None = None
    clock: float | None = None
    vector_memory_bytes: float = 0


# Keys are lower-case fragments of `jax.Device.device_kind`, the more particular ones first.
CHIPS = {
    "h200": Chip(
        name="NVIDIA H200 SXM", bf16_flops=989e12, memory_bytes=141e9, memory_bandwidth=4.8e12,
        source="NVIDIA H200 data sheet; DGX H200: a card of 400 Gb/s a GPU", link_bandwidth=450e9, node_bandwidth=50e9,
    ),
    "h100": Chip(
        name="NVIDIA H100 SXM", bf16_flops=989e12, memory_bytes=80e9, memory_bandwidth=3.35e12,
        source="NVIDIA H100 data sheet; DGX H100: a card of 400 Gb/s a GPU", link_bandwidth=450e9, node_bandwidth=50e9,
    ),
    "a100": Chip(
        name="NVIDIA A100 80GB SXM", bf16_flops=312e12, memory_bytes=80e9, memory_bandwidth=2.039e12,
        source="NVIDIA A100 data sheet; DGX A100: a card of 200 Gb/s a GPU", link_bandwidth=300e9, node_bandwidth=25e9,
    ),
    "v6 lite": Chip(
        name="TPU v6e", bf16_flops=918e12, memory_bytes=32 * 2**30, memory_bandwidth=1.64e12,
        source="Cloud TPU v6e page", link_bandwidth=400e9, clock=1.75e9, vector_memory_bytes=128 * 2**20,
    ),
    "v5 lite": Chip(
        name="TPU v5e", bf16_flops=197e12, memory_bytes=16 * 2**30, memory_bandwidth=0.82e12,
        source="Cloud TPU v5e page", link_bandwidth=200e9, clock=1.5e9, vector_memory_bytes=128 * 2**20,
    ),
    "v5": Chip(
        name="TPU v5p", bf16_flops=459e12, memory_bytes=95 * 2**30, memory_bandwidth=2.765e12,
        source="Cloud TPU v5p page", link_bandwidth=600e9, clock=1.75e9, vector_memory_bytes=64 * 2**20,
    ),
    "v4": Chip(
        name="TPU v4", bf16_flops=275e12, memory_bytes=32 * 2**30, memory_bandwidth=1.2e12,
        source="Cloud TPU v4 page", link_bandwidth=300e9, clock=1.05e9, vector_memory_bytes=16 * 2**20,
    ),
}  # fmt: skip

NOMINAL = Chip(
    name="CPU", bf16_flops=5e10, memory_bytes=float("inf"), memory_bandwidth=1e10, link_bandwidth=5e9,
    source="orders of magnitude of a core; for ranking layouts of forced devices only",
)  # fmt: skip


def chip(device: jax.Device) -> Chip | None:
    """The data sheet of a device; None for one that is not listed (every CPU)."""
    kind = device.device_kind.lower()
    return next((sheet for fragment, sheet in CHIPS.items() if fragment in kind), None)


def has_fast_bf16(device: jax.Device) -> bool:
    """Whether bfloat16 arithmetic is faster than float32 there (XLA on CPU emulates it, measured slower)."""
    return device.platform in ("tpu", "gpu", "cuda", "rocm")


def measured_matmul_flops(size: int = 1024, seconds: float = 1.0) -> float:
    """FLOP/s of this machine's float32 `size` x `size` matrix product, the best of what fits into `seconds`."""
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    multiply(a).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
