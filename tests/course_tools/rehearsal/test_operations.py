"""The card's own ways to compute: what they hold is a T4's, what they give is the processor's."""

import pretend
import pytest
import torch

from course_tools.rehearsal import operations

pytestmark = pretend.POSSIBLE


def test_large_products_are_samples_of_the_same_size(card):
    torch.manual_seed(0)
    # float64: in float32 the order of the sums, which threads decide, shows in the fifth place
    a, b = (torch.randn(rows, 512, device="cuda", dtype=torch.float64) for rows in (16, 512))
    exact = a.cpu() @ b.cpu()
    torch.testing.assert_close((a @ b[:, :8]).cpu(), exact[:, :8])
    card.ledger.restart()
    large = a @ b
    assert card.ledger.count.peak - (a.nbytes + b.nbytes) == exact.nbytes, "all that the whole product holds"
    assert large.shape == exact.shape and 0.8 < large.std() / exact.std() < 1.2
    assert (a.half() @ b.half()).dtype is torch.float16


def scores_held(card, q, k, v, **options):
    """Whether attention holds one number a score."""
    card.ledger.restart()
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    held = card.ledger.restart().peak - card.ledger.alive
    del out
    return held >= q.element_size() * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]


def test_attention_is_memory_efficient_unless_keys_are_shared(card):
    """Flash attention needs a newer card; the memory-efficient kernel takes no shared keys."""
    q, k, v = (torch.randn(2, 8, 256, 8, device="cuda").half() for _ in range(3))
    few = {"k": k[:, :2].clone(), "v": v[:, :2].clone()}
    assert not scores_held(card, q, k, v, is_causal=True)
    assert not scores_held(card, q, k, v, attn_mask=torch.ones(256, 256, dtype=torch.bool, device="cuda"))
    with torch.no_grad():
        assert scores_held(card, q, **few, is_causal=True, enable_gqa=True)
    q.requires_grad_()
    assert not scores_held(card, q, k, v, is_causal=True)
    assert scores_held(card, q, **few, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mask", [None, torch.float32, torch.bool])
def test_attention_is_trained_through(card, mask, dtype):
    def loss(device):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 8, 16).to(device, dtype).requires_grad_() for _ in range(3))
        bias = None
        if mask is not None:
            bias = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril().to(device)
        if mask is torch.float32:
            bias = torch.where(bias, 0.0, -1e4).to(dtype)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None)
        (out * out).sum().backward()
        return [tensor.cpu() for tensor in (out, q.grad, k.grad, v.grad)]

    tolerance = {} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(loss("cuda"), loss("cpu"), **tolerance)


def test_attention_with_shared_keys_holds_its_scores_as_on_a_t4(card, monkeypatch):
    """Torch documents that grouped-query attention works for flash (not on a T4) and written out."""
    q = torch.randn(1, 8, 128, 16, device="cuda")
    k, v = (torch.randn(1, 2, 128, 16, device="cuda") for _ in range(2))

    def attend():
        card.ledger.restart()
        with torch.no_grad():
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return card.ledger.restart()

    exact = attend()
    monkeypatch.setattr(operations, "_MANY_SCORES", 1)
    counted = attend()
    scores = 8 * 128 * 128
    assert exact.peak > card.ledger.alive + 8 * scores
    # The softmax's repaired copy (4 bytes) and mask (1) are inside of one operation when it is written out here.
    assert exact.peak + 4 * scores < counted.peak < exact.peak + 6 * scores


@pytest.mark.parametrize("mask", [False, True])
def test_sampled_attention_holds_what_all_of_it_holds(card, mask, monkeypatch):
    peaks = []
    with torch.no_grad():
        q, k, v = (torch.randn(1, 4, 96, 16, device="cuda") for _ in range(3))
        bias = torch.full((1, 1, 96, 96), -torch.inf).triu(1).to("cuda") if mask else None
        if mask:
            bias[..., :40] = -torch.inf  # padding, in which a sample sees nothing
        for many in (operations._MANY_SCORES, 1):
            monkeypatch.setattr(operations, "_MANY_SCORES", many)
            card.ledger.restart()
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, is_causal=not mask).cpu()
            peaks.append(card.ledger.restart().peak)
            assert out.shape == q.shape
    assert peaks[0] == peaks[1] and out.isfinite().all()


def test_whole_numbers_are_counted_as_on_a_card(card):
    """A mixture of experts counts there, in whole numbers, how many tokens each expert gets."""
    asked = torch.tensor([0, 3, 1, 1, 3, 3], device="cuda", dtype=torch.int32)
    counts = torch.histc(asked, bins=5, min=0, max=4)
    assert counts.is_cuda and counts.dtype is torch.int32 and counts.tolist() == [1, 2, 0, 3, 0]
