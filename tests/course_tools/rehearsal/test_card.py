"""What is written down of a card: the most that it held, and who held it, by name."""

from types import SimpleNamespace

import pretend
import psutil
import pytest
import torch

from course_tools.rehearsal.card import SPARE, T4, Ledger, shown
from course_utils.models.loading import tiny_llama

pytestmark = pretend.POSSIBLE


def test_a_ledger_holds_each_storage_once_and_what_passes_by():
    assert shown(T4) == "14.70 GiB" and shown(2**20) == "1.0 MiB"
    ledger = Ledger()
    whole = torch.zeros(1000)
    for tensor in (whole, whole[10:], whole.view(10, 100)):
        ledger.store(tensor)
    assert (ledger.alive, ledger.peak) == (4000, 4000)
    ledger.pass_by(500)
    assert ledger.restart()[0] == ledger.peak == 4500 and ledger.restart()[0] == ledger.alive == 4000
    del whole, tensor
    assert ledger.alive == 0 and ledger.peak == 4500
    ledger.forget_peak()
    assert ledger.peak == 0


def test_what_held_it_is_named(card):
    base, here = tiny_llama(blocks=40).to("cuda"), tiny_llama()
    half_copied = {"memo": {1: torch.nn.Linear.__new__(torch.nn.Linear)}}
    names = {"base": base, "others": [here], "_": base} | half_copied
    card.ledger.names = lambda: names
    held = torch.zeros(2**23, device="cuda")
    held, other = held + 1, held
    what = dict(card.ledger.holders())
    assert what["model base"] == sum(tensor.nbytes for tensor in (*base.parameters(), *base.buffers()))
    assert sum(what.values()) == card.ledger.alive
    assert what["elsewhere (2 tensors, the largest [8388608] float32)"] == 2 * 2**25
    assert [name for name, _ in card.ledger.host_holders()] == ["model others[0]"]
    del other


@pytest.mark.parametrize("free", ["memory", "swap", ""])
def test_there_is_room_for_what_this_machine_has(free, card, monkeypatch):
    room = {"memory": 0, "swap": 0} | {free: SPARE}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=room["memory"]))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=room["swap"]))
    if free:
        assert torch.zeros(2**25, device="cuda").is_cuda
        return
    with pytest.raises(torch.cuda.OutOfMemoryError, match="This machine's memory is full"):
        torch.zeros(2**25, device="cuda")
