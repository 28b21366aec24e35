"""Seeds derived by hashing, and counter-based random numbers that do not depend on batch size or worker count.

``torch.Generator`` produces a stream: the numbers of a sample depend on all draws before it. Here a random number is a
pure function of (seed, index), so a sample gets the same noise alone, in a batch of 256, or on another node.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

# splitmix64 (Steele, Lea, Flood 2014): increment and the two multipliers, as signed 64-bit integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2⁶³) that is a hash of ``parts``, e.g. ``derive_seed(study_seed, replicate, "order")``."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def hash_ids(ids: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Return one 63-bit hash per sample id. Compute it once per data set; ``mix`` derives the seed of each draw."""
    return np.fromiter((derive_seed(identifier) for identifier in ids), dtype=np.int64)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Return ``value`` shifted right logically; torch's own shift of signed integers is arithmetic."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(state: Int64[Tensor, "*shape"], *parts: object) -> Int64[Tensor, "*shape"]:
    """Return ``state`` mixed with ``parts`` (hashed) by splitmix64, elementwise, on ``state``'s device."""
    offset = derive_seed(*parts) if parts else 0
    value = (state ^ offset).add_(_GAMMA)
    value.bitwise_xor_(_shift_right(value, 30)).mul_(_MIX_1)
    value.bitwise_xor_(_shift_right(value, 27)).mul_(_MIX_2)
    return value.bitwise_xor_(_shift_right(value, 31))


def uniform(seeds: Int64[Tensor, " n"], *shape: int, stream: object = 0) -> Float[Tensor, "n *shape"]:
    """Return float32 numbers in [0, 1), one block of ``shape`` per seed, on the seeds' device.

    ``stream`` separates several draws of the same sample (op choice, magnitude, noise).
    """
    count = int(np.prod(shape)) if shape else 1
    counter = torch.arange(count, device=seeds.device, dtype=torch.int64) * _GAMMA
    bits = mix(mix(seeds, "stream", stream)[:, None] + counter[None, :])
    # 24 high bits: exactly representable in float32, so 1.0 can never come out.
    return (_shift_right(bits, 40).to(torch.float32) * 2.0**-24).reshape(len(seeds), *shape)


def uniform_16bit(seeds: Int64[Tensor, " n"], *shape: int, stream: object = 0) -> Int32[Tensor, "n *shape"]:
    """Return integers in [0, 2¹⁶), one block of ``shape`` per seed; one hash gives four, a quarter of the work."""
    count = int(np.prod(shape)) if shape else 1
    counter = torch.arange(-(-count // 4), device=seeds.device, dtype=torch.int64) * _GAMMA
    bits = mix(mix(seeds, "stream", stream)[:, None] + counter[None, :])
    quarters = bits.view(torch.int16)[:, :count].to(torch.int32).bitwise_and_(0xFFFF)
    return quarters.reshape(len(seeds), *shape)


def normal(seeds: Int64[Tensor, " n"], *shape: int, stream: object = 0) -> Float[Tensor, "n *shape"]:
    """Return float32 standard normal numbers (Box–Muller), one block of ``shape`` per seed."""
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(seeds, *shape, stream=("radius", stream))))
    return radius * torch.cos(2.0 * torch.pi * uniform(seeds, *shape, stream=("angle", stream)))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices) for code that draws from global generators (init, dropout)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
