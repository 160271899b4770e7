"""The card's own ways to compute: what they hold is a T4's, what they give is the processor's."""

import pretend
import pytest
import torch

from course_tools.rehearsal import operations
from course_tools.rehearsal.pretend_gpu import PretendGPU

pytestmark = pretend.POSSIBLE


def test_sampled_products_change_numbers_only():
    with PretendGPU(sampled=True) as card:
        torch.manual_seed(0)
        a, b = torch.randn(16, 512, device="cuda"), torch.randn(512, 512, device="cuda")
        small, large = a @ b[:, :8], a @ b
        exact = a.cpu() @ b.cpu()
        torch.testing.assert_close(small.cpu(), a.cpu() @ b.cpu()[:, :8])
        assert large.shape == exact.shape and 0.8 < large.std() / exact.std() < 1.2
        half = (a.half() @ b.half()).dtype
        assert half is torch.float16
        assert card.ledger.count.flops == 2 * 512 * 16 * (8 + 512 + 512), "as if all had been computed"


@pytest.mark.parametrize("mask", [False, True])
def test_attention_is_trained_through(card, mask):
    def loss(device):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 8, 16).to(device).requires_grad_() for _ in range(3))
        bias = torch.zeros(2, 1, 8, 8, device=device) if mask else None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, is_causal=not mask)
        out.sum().backward()
        return q.grad.cpu()

    torch.testing.assert_close(loss("cuda"), loss("cpu"))


def test_attention_with_shared_keys_holds_its_scores_as_on_a_t4(card, monkeypatch):
    """Torch documents that grouped-query attention works for flash (not on a T4) and written out."""
    q = torch.randn(1, 8, 128, 16, device="cuda")
    k, v = (torch.randn(1, 2, 128, 16, device="cuda") for _ in range(2))

    def attend():
        card.ledger.restart()
        with torch.no_grad():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return card.ledger.restart().peak, out.cpu()

    (exact, expected), _ = attend(), monkeypatch.setattr(operations, "_MANY_SCORES", 1)
    counted, found = attend()
    assert exact > card.ledger.alive + 8 * 8 * 128 * 128
    assert counted == pytest.approx(exact, rel=0.1)
    torch.testing.assert_close(found, expected)
