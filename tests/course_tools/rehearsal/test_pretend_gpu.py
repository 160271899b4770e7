"""The pretended card: what a program sees of it, and that every byte on it is counted once."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from course_tools.rehearsal import pretend_gpu
from course_tools.rehearsal.pretend_gpu import Card, CardTensor, PretendGPU
from course_utils import session
from course_utils.benchmarking import measure_memory, measure_speed
from course_utils.models import identity, tiny_llama, variant

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or torch.cuda.is_available(), reason="needs torch without a card, on Linux or macOS"
)


@pytest.fixture
def card():
    with PretendGPU() as card:
        yield card


def size(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_a_program_sees_a_t4(card):
    assert torch.cuda.is_available() and torch.cuda.get_device_name(0) == "Tesla T4"
    device = session.default_device()
    assert device.type == "cuda" and session.fast_dtype(device) is torch.float16
    free, total = torch.cuda.mem_get_info()
    held = torch.zeros(1000, device=device)
    assert torch.cuda.mem_get_info() == (free - 4000, total) and total == card.card.memory
    assert (held.device, held.is_cuda, held.cpu().is_cuda) == (torch.device("cuda", 0), True, False)
    assert repr(held[:2]) == "tensor([0., 0.], device='cuda:0')"
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
        held.numpy()


def test_afterwards_there_is_none():
    with PretendGPU():
        pass
    assert not torch.cuda.is_available()
    assert session.default_device().type == "cpu"


def test_bytes_are_counted_from_the_first_tensor_on_a_storage_to_the_last(card):
    held = torch.zeros(256, 256, device="cuda")
    assert card.alive == 256 * 256 * 4
    view = held[3:5]
    transposed = held.T
    assert card.alive == 256 * 256 * 4, "views hold the same storage"
    doubled = held * 2
    assert card.alive == 2 * 256 * 256 * 4
    held += 1
    assert card.alive == 2 * 256 * 256 * 4, "in place"
    del held, transposed, doubled
    assert card.alive == 256 * 256 * 4, "two rows hold all of it"
    del view
    assert card.alive == 0
    assert card.count.peak == 2 * 256 * 256 * 4
    torch.zeros(10)
    assert card.alive == 0, "main memory is another matter"


def test_the_peak_of_an_expression_has_its_intermediate_tensors(card):
    x = torch.ones(1000, device="cuda")
    card.restart()
    y = (x + 1) * (x + 2)
    assert card.restart().peak == 4 * 4000  # x, both sums, the product
    assert card.alive == 8000 and y.sum().item() == 6000


def test_models_and_their_copies(card):
    model = tiny_llama().to("cuda")
    whole = size(model)
    assert card.alive == whole
    second = variant(model)
    assert card.alive == whole, "a variant shares every weight"
    third = copy.deepcopy(model)
    assert card.alive == 2 * whole
    assert identity(second) == identity(third) == identity(model)
    third.half()
    assert card.alive == pytest.approx(1.5 * whole, rel=0.01)  # buffers in float32 stay
    del model, second
    assert card.alive == pytest.approx(0.5 * whole, rel=0.02)


def test_tied_weights_stay_tied_and_are_counted_once(card):
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    before = size(model)
    model.to("cuda")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert card.alive == before


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
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        optimizer.step()
        assert not torch.equal(model.lm_head.weight.cpu(), plain.lm_head.weight)
        generated = (
            plain.generate(ids, max_new_tokens=4),
            tiny_llama().to("cuda").generate(ids.cuda(), max_new_tokens=4),
        )
        assert torch.equal(generated[0], generated[1].cpu())


def test_training_holds_gradients_and_averages(card):
    layer = nn.Linear(512, 512, bias=False).to("cuda")
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 512, device="cuda")).sum().backward()
    optimizer.step()
    weights = 512 * 512 * 4
    assert 4 * weights <= card.alive < 4.1 * weights


def test_speed_and_memory_are_measured_as_on_a_card(card):
    models = {"one": tiny_llama().to("cuda")}
    for phases in (("prefill", "decode"), ("decode",)):
        table = measure_speed(models, prompt_tokens=6, new_tokens=2, rounds=6, phases=phases)
        assert tuple(table.phase) == phases and (table.seconds > 0).all()
    memory = measure_memory(models, prompt_tokens=6, new_tokens=2)
    assert memory.peak[0] > memory.weights[0] + memory.cache[0]


def test_devices_are_not_mixed(card):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        here + there
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        tiny_llama().to("cuda")(torch.arange(3)[None])
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2], "a single number may come from anywhere"
    assert there[torch.tensor([0])].tolist() == [1], "an index, too"
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device="cuda", generator=torch.Generator())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([1, 2], device="cuda"),
        lambda: torch.as_tensor([1, 2], device="cuda:0"),
        lambda: torch.arange(2, device=torch.device("cuda")),
        lambda: torch.ones(2).cuda(),
        lambda: torch.ones(2).to(device="cuda", dtype=torch.float16),
        lambda: torch.ones(2, device="cuda").new_tensor([1, 2]),
        lambda: torch.ones(2, device="cuda").sort()[1],
        lambda: torch.nn.functional.one_hot(torch.tensor([1], device="cuda"), 3),
    ],
)
def test_what_is_made_there_is_there(card, make):
    made = make()
    assert isinstance(made, CardTensor) and made.device.type == "cuda"


def test_what_held_it_is_named(card):
    names = {"base": tiny_llama(blocks=40).to("cuda")}
    card.names = lambda: names
    held = torch.zeros(2**23, device="cuda")
    held, other = held + 1, held
    what = dict(card.holders())
    assert what["model base"] == size(names["base"])
    assert sum(what.values()) == card.alive
    assert what["elsewhere (2 tensors, the largest [8388608] float32)"] == 2 * 2**25
    del other


def test_work_is_counted_and_timed():
    with PretendGPU(Card(half=1e12, single=1e10, efficiency=0.5, bandwidth=1e9, launch=0)) as card:
        a = torch.ones(100, 200, device="cuda")
        card.restart()
        a @ a.T
        work = card.restart()
        assert work.flops == 2 * 100 * 200 * 100
        assert work.moved == 4 * (100 * 200 * 2 + 100 * 100)
        assert work.seconds == pytest.approx(4_000_000 / (1e10 * 0.5))
        a + a
        assert card.restart().seconds == pytest.approx(3 * 4 * 100 * 200 / 1e9)


def test_sampled_products_change_numbers_only():
    with PretendGPU(exact_rows=8) as card:
        torch.manual_seed(0)
        a, b = torch.randn(16, 512, device="cuda"), torch.randn(512, 512, device="cuda")
        few, many = a[:8] @ b, a @ b
        exact = a.cpu() @ b.cpu()
        torch.testing.assert_close(few.cpu(), exact[:8])
        assert many.shape == exact.shape and 0.8 < many.std() / exact.std() < 1.2
        half = (a.half() @ b.half()).dtype
        assert half is torch.float16
        assert card.count.flops == 2 * 512 * 512 * (8 + 16 + 16), "as if all had been computed"


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
        card.restart()
        with torch.no_grad():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return card.restart().peak, out.cpu()

    (exact, expected), _ = attend(), monkeypatch.setattr(pretend_gpu, "_MANY_SCORES", 1)
    counted, found = attend()
    assert exact > card.alive + 8 * 8 * 128 * 128
    assert counted == pytest.approx(exact, rel=0.1)
    torch.testing.assert_close(found, expected)


def test_there_is_room_for_what_this_machine_has(card):
    card.spare = 10**15
    with pytest.raises(torch.cuda.OutOfMemoryError, match="This machine's memory is full"):
        torch.zeros(2**25, device="cuda")


def test_a_second_card_is_refused(card):
    with pytest.raises(RuntimeError, match="one pretended card already"), PretendGPU():
        pass


def test_its_tensors_end_with_it():
    with PretendGPU():
        left = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="The pretended card is gone"):
        left + 1


def test_a_program_may_keep_it_to_its_end():
    program = (
        "import torch; from course_tools.rehearsal.pretend_gpu import PretendGPU; PretendGPU().install();"
        "print(torch.ones(2, device='cuda').sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "2.0\n"
    assert pretend_gpu.T4.memory < 15 * 2**30
