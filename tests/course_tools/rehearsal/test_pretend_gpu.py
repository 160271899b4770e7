"""The pretended card: every byte on it is counted once, and the numbers on it are the processor's."""

import copy

import pretend
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from course_tools.rehearsal import pretend_gpu
from course_tools.rehearsal.card import T4
from course_tools.rehearsal.pretend_gpu import PretendGPU
from course_utils.measuring.benchmarking import measure_speed, peak_memory
from course_utils.models.loading import identity, tiny_llama, variant
from course_utils.support import session

pytestmark = pretend.POSSIBLE


def size(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_bytes_are_counted_from_the_first_tensor_on_a_storage_to_the_last(card):
    held = torch.zeros(1000, device="cuda")
    view, transposed, doubled = held[3:5], held.T, held * 2
    held += 1
    assert card.ledger.alive == 8000, "views and what is written in place hold the same storage"
    del held, transposed, doubled
    assert card.ledger.alive == 4000, "two numbers hold all of it"
    del view
    torch.zeros(10)
    assert card.ledger.alive == 0, "main memory is another matter"
    x = torch.ones(1000, device="cuda")
    card.ledger.restart()
    y = (x + 1) * (x + 2)
    assert card.ledger.restart()[0] == 4 * 4000, "x, both sums, the product"
    assert card.ledger.alive == 8000 and y.sum().item() == 6000


def test_a_program_sees_a_t4_and_afterwards_none():
    found = torch.cuda.is_available
    with PretendGPU():
        assert torch.cuda.is_available() and torch.cuda.get_device_name(0) == "Tesla T4"
        device = session.default_device()
        assert device.type == "cuda" and session.fast_dtype(device) is torch.float16
        free, total = torch.cuda.mem_get_info()
        held = torch.zeros(1000, device=device)
        assert torch.cuda.mem_get_info() == (free - 4000, total) and total == T4
        assert (held.device, held.is_cuda, held.is_cpu) == (torch.device("cuda", 0), True, False)
        assert not held.cpu().is_cuda and held.cpu().device.type == "cpu"
        torch.accelerator.synchronize()
        with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
            held.numpy()
    assert torch.cuda.is_available is found
    assert session.default_device().type == held.device.type == "cpu"


def test_models_and_their_copies(card):
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    whole = size(model)
    model.to("cuda")
    assert card.ledger.alive == whole and model.lm_head.weight is model.model.embed_tokens.weight
    second = variant(model)
    assert card.ledger.alive == whole, "a variant shares every weight"
    third = copy.deepcopy(model)
    assert card.ledger.alive == 2 * whole
    assert identity(second) == identity(third) == identity(model)
    third.half()
    assert card.ledger.alive == pytest.approx(1.5 * whole, rel=0.01)  # buffers in float32 stay
    model.to("cpu")
    del second
    assert card.ledger.alive == pytest.approx(0.5 * whole, rel=0.02)


def test_the_numbers_are_those_of_the_processor():
    ids = torch.arange(12)[None]
    plain = tiny_llama()
    expected = plain(ids, labels=ids)
    expected.loss.backward()
    with PretendGPU():
        model = tiny_llama().to("cuda")
        found = model(ids.cuda(), labels=ids.cuda())
        found.loss.backward()
        torch.testing.assert_close(found.logits.cpu(), expected.logits)
        torch.testing.assert_close(model.lm_head.weight.grad.cpu(), plain.lm_head.weight.grad)
        torch.optim.AdamW(model.parameters(), lr=1e-2).step()
        assert not torch.equal(model.lm_head.weight.cpu(), plain.lm_head.weight)
        model = tiny_llama().to("cuda")
        assert torch.equal(model.generate(ids.cuda(), max_new_tokens=4).cpu(), plain.generate(ids, max_new_tokens=4))
        with torch.inference_mode():
            torch.testing.assert_close(model(ids.cuda()).logits.cpu(), expected.logits)


@pytest.mark.parametrize("fused", [True, False])
def test_training_holds_gradients_and_averages(card, fused):
    layer = nn.Linear(512, 512, bias=False).to("cuda")
    optimizer = torch.optim.AdamW(layer.parameters(), fused=fused)
    layer(torch.ones(1, 512, device="cuda")).sum().backward()
    optimizer.step()
    weights = 512 * 512 * 4
    assert 4 * weights <= card.ledger.alive < 4.1 * weights


def test_what_is_computed_again_in_training_is_on_the_card(card):
    seen = []

    def twice(x):
        seen.append(x.device.type)
        return (x * torch.ones(3, device="cuda")).sin()

    weight = torch.ones(3, device="cuda", requires_grad=True)
    for ask in (torch.Tensor.backward, torch.autograd.backward, lambda loss: torch.autograd.grad(loss, weight)):
        ask(checkpoint(twice, weight, use_reentrant=False).sum())
    assert seen == 6 * ["cuda"] and weight.grad.is_cuda


def test_speed_and_memory_are_measured_as_on_a_card(card):
    models = {"one": tiny_llama().to("cuda")}
    table = measure_speed(models, prompt_tokens=6, new_tokens=2, rounds=6)
    assert tuple(table.phase) == ("prefill", "decode") and (table.seconds > 0).all()
    ids = torch.arange(6, device="cuda")[None]
    assert peak_memory(lambda: models["one"](ids), device="cuda") > models["one"](ids).logits.nbytes


def test_devices_are_not_mixed(card):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    for mixed in (lambda: here + there, lambda: tiny_llama().to("cuda")(torch.arange(3)[None])):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            mixed()
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2], "a single number may come from anywhere"
    assert there[torch.tensor([0])].tolist() == [1], "an index, too"
    here[:] = there
    there.copy_(here)
    assert here.device.type == "cpu" and there.is_cuda
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1, 2], device="cuda"),
        lambda: torch.as_tensor([1, 2], device="cuda:0"),
        lambda: torch.as_tensor(torch.ones(2), device="cuda"),
        lambda: torch.arange(2, device=torch.device("cuda")),
        lambda: torch.ones(2).cuda(),
        lambda: torch.ones(2).to(device="cuda", dtype=torch.float16),
        lambda: torch.ones(2).to(torch.ones(1, device="cuda")),
        lambda: torch.ones(2, device="cuda").new_tensor([1, 2]),
        lambda: torch.ones(2, device="cuda").sort()[1],
        lambda: nn.functional.one_hot(torch.tensor([1], device="cuda"), 3),
    ],
)
def test_what_is_made_there_is_there(card, make):
    assert make().device.type == "cuda"


def test_large_products_are_samples_of_the_same_size(card):
    torch.manual_seed(0)
    # float64: in float32 the order of the sums, which threads decide, shows in the fifth place
    a, b = (torch.randn(rows, 512, dtype=torch.float64).cuda() for rows in (16, 512))
    exact = a.cpu() @ b.cpu()
    torch.testing.assert_close((a @ b[:, :8]).cpu(), exact[:, :8])
    card.ledger.restart()
    large = a @ b
    assert card.ledger.restart()[0] - (a.nbytes + b.nbytes) == exact.nbytes, "all that the whole product holds"
    assert large.shape == exact.shape and 0.8 < large.std() / exact.std() < 1.2
    assert (a.half() @ b.half()).dtype is torch.float16


def attended(card, *tensors, **options):
    """The most bytes while attention runs, above what stays."""
    card.ledger.restart()
    out = scaled_dot_product_attention(*tensors, **options)
    assert out.isfinite().all()
    held = card.ledger.restart()[0]
    return held - card.ledger.alive


def test_attention_is_memory_efficient_unless_keys_are_shared(card, monkeypatch):
    """Flash attention needs a newer card; the memory-efficient kernel takes no shared keys."""
    q, k, v = (torch.randn(2, 8, 256, 8, device="cuda").half() for _ in range(3))
    scores = q.element_size() * 2 * 8 * 256 * 256
    shared = {"is_causal": True, "enable_gqa": True}
    assert attended(card, q, k, v, is_causal=True) < scores
    assert attended(card, q, k, v, attn_mask=torch.ones(256, 256, dtype=torch.bool, device="cuda")) < scores
    with torch.no_grad():
        assert attended(card, q, k[:, :2], v[:, :2], **shared) >= scores
    q.requires_grad_()
    assert attended(card, q, k, v, is_causal=True) < scores
    assert attended(card, q, k[:, :2], v[:, :2], **shared) >= scores
    # Counted as if the scores were written out: their softmax's repaired copy and a mask are inside of one operation.
    q, k, v = (torch.randn(1, heads, 128, 16, device="cuda") for heads in (8, 2, 2))
    exact = attended(card, q, k, v, **shared)
    monkeypatch.setattr(pretend_gpu, "_MANY_SCORES", 1)
    with torch.no_grad():
        assert exact + 4 * 8 * 128 * 128 < attended(card, q, k, v, **shared) < exact + 6 * 8 * 128 * 128


@torch.no_grad()
def test_sampled_attention_holds_what_all_of_it_holds(card, monkeypatch):
    q, k, v = (torch.randn(1, 4, 96, 16, device="cuda") for _ in range(3))
    bias = torch.full((1, 1, 96, 96), -torch.inf).triu(1).to("cuda")
    for options in ({"is_causal": True}, {"attn_mask": bias}):
        whole = attended(card, q, k, v, **options)
        with monkeypatch.context() as patch:
            patch.setattr(pretend_gpu, "_MANY_SCORES", 1)
            assert attended(card, q, k, v, **options) == whole


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
        out = scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None)
        (out * out).sum().backward()
        return [tensor.cpu() for tensor in (out, q.grad, k.grad, v.grad)]

    tolerance = {} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(loss("cuda"), loss("cpu"), **tolerance)


def test_whole_numbers_are_counted_as_on_a_card(card):
    """A mixture of experts counts there, in whole numbers, how many tokens each expert gets."""
    asked = torch.tensor([0, 3, 1, 1, 3, 3], device="cuda", dtype=torch.int32)
    counts = torch.histc(asked, bins=5, min=0, max=4)
    assert counts.is_cuda and counts.dtype is torch.int32 and counts.tolist() == [1, 2, 0, 3, 0]
