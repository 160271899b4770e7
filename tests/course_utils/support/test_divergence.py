"""One divergence, by its definition."""

from __future__ import annotations

import torch
from torch.nn.functional import kl_div

from course_utils.support.divergence import kl_divergence

P, Q = torch.randn(2, 3, 4, 11, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)


def test_by_its_definition():
    given = kl_divergence(P, Q)
    assert given.shape == (3, 4) and (given > 0).all()
    torch.testing.assert_close(given, (P.exp() * (P.exp() / Q.exp()).log()).sum(-1))
    assert torch.equal(kl_divergence(P, P), torch.zeros(3, 4))
    assert not torch.allclose(given, kl_divergence(Q, P))  # it has a direction


def test_bit_for_bit_what_torch_computes_gradients_included():
    results = []
    for divergence in (kl_divergence, lambda p, q: kl_div(q, p, log_target=True, reduction="none").sum(-1)):
        p, q = P.clone().requires_grad_(), Q.clone().requires_grad_()
        value = divergence(p, q)
        results.append((value, *torch.autograd.grad(value.sum(), (p, q))))
    assert all(map(torch.equal, *results))
