from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.training.mixing import cutmix, mixup


def test_mixup_is_the_convex_combination_and_reproducible() -> None:
    images = torch.rand(5, 1, 4, 4)
    mixed, partner, share = mixup(images, alpha=0.4, generator=np.random.default_rng(1))
    again, partner_again, share_again = mixup(images, alpha=0.4, generator=np.random.default_rng(1))
    assert torch.equal(mixed, again)
    assert torch.equal(partner, partner_again)
    assert share == share_again
    assert 0 <= share <= 1
    assert sorted(partner.tolist()) == list(range(5))
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[partner])


def test_mixup_shares_follow_beta() -> None:
    generator = np.random.default_rng(0)
    images = torch.zeros(2, 1, 1, 1)
    shares = np.array([mixup(images, alpha=0.2, generator=generator)[2] for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 17, 40)])
def test_cutmix_replaces_one_rectangle_by_the_partners_and_counts_its_pixels(shape: tuple[int, ...]) -> None:
    images = torch.arange(1, shape[0] + 1).float().view(-1, 1, 1, 1).expand(shape).contiguous()
    for seed in range(20):
        mixed, partner, share = cutmix(images, alpha=1.0, generator=np.random.default_rng(seed))
        again = cutmix(images, alpha=1.0, generator=np.random.default_rng(seed))
        assert torch.equal(mixed, again.images)
        replaced = mixed != images
        assert bool((mixed == torch.where(replaced, images[partner], images)).all())
        moved = partner != torch.arange(shape[0])
        kept = 1.0 - replaced[moved].float().mean((1, 2, 3))
        assert torch.allclose(kept, torch.full_like(kept, share), atol=1e-6)
        rows, columns = replaced.any(3).any(1), replaced.any(2).any(1)  # a rectangle: the outer product of both
        assert torch.equal(replaced[:, 0], rows[:, :, None] & columns[:, None, :])


def test_cutmix_shares_follow_beta_but_for_what_is_cut_off() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([cutmix(torch.zeros(2, 1, 64, 64), alpha=1.0, generator=generator).share for _ in range(500)])
    assert shares.min() >= 0.0
    assert shares.max() <= 1.0
    # E[λ] = ½; a part of a rectangle around a uniform centre lies outside.
    assert 0.5 < shares.mean() < 0.75
