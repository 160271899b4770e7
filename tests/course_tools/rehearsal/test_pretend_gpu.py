"""The pretended card: every byte on it is counted once, and the numbers on it are the processor's."""

import copy

import pretend
import pytest
import torch
from torch import nn

from course_tools.rehearsal.pretend_gpu import CardTensor, PretendGPU
from course_utils.benchmarking import measure_speed, peak_memory
from course_utils.models import identity, tiny_llama, variant

pytestmark = pretend.POSSIBLE


def size(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_bytes_are_counted_from_the_first_tensor_on_a_storage_to_the_last(card):
    held = torch.zeros(256, 256, device="cuda")
    assert card.ledger.alive == 256 * 256 * 4
    view = held[3:5]
    transposed = held.T
    assert card.ledger.alive == 256 * 256 * 4, "views hold the same storage"
    doubled = held * 2
    assert card.ledger.alive == 2 * 256 * 256 * 4
    held += 1
    assert card.ledger.alive == 2 * 256 * 256 * 4, "in place"
    del held, transposed, doubled
    assert card.ledger.alive == 256 * 256 * 4, "two rows hold all of it"
    del view
    assert card.ledger.alive == 0
    assert card.ledger.count.peak == 2 * 256 * 256 * 4
    torch.zeros(10)
    assert card.ledger.alive == 0, "main memory is another matter"


def test_the_peak_of_an_expression_has_its_intermediate_tensors(card):
    x = torch.ones(1000, device="cuda")
    card.ledger.restart()
    y = (x + 1) * (x + 2)
    assert card.ledger.restart().peak == 4 * 4000  # x, both sums, the product
    assert card.ledger.alive == 8000 and y.sum().item() == 6000


def test_models_and_their_copies(card):
    model = tiny_llama().to("cuda")
    whole = size(model)
    assert card.ledger.alive == whole
    second = variant(model)
    assert card.ledger.alive == whole, "a variant shares every weight"
    third = copy.deepcopy(model)
    assert card.ledger.alive == 2 * whole
    assert identity(second) == identity(third) == identity(model)
    third.half()
    assert card.ledger.alive == pytest.approx(1.5 * whole, rel=0.01)  # buffers in float32 stay
    del model, second
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
    assert 4 * weights <= card.ledger.alive < 4.1 * weights


def test_speed_and_memory_are_measured_as_on_a_card(card):
    models = {"one": tiny_llama().to("cuda")}
    for phases in (("prefill", "decode"), ("decode",)):
        table = measure_speed(models, prompt_tokens=6, new_tokens=2, rounds=6, phases=phases)
        assert tuple(table.phase) == phases and (table.seconds > 0).all()
    ids = torch.arange(6, device="cuda")[None]
    assert peak_memory(lambda: models["one"](ids), device="cuda") > models["one"](ids).logits.nbytes


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


def test_a_second_card_is_refused(card):
    with pytest.raises(RuntimeError, match="one pretended card already"), PretendGPU():
        pass


def test_its_tensors_end_with_it():
    with PretendGPU():
        left = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="The pretended card is gone"):
        left + 1
