"""What is written down of a card: bytes once, work by the card's own speeds, holders by name."""

import pretend
import pytest
import torch

from course_tools.rehearsal.card import T4, Card, Ledger, shown
from course_tools.rehearsal.pretend_gpu import PretendGPU
from course_utils.models import tiny_llama

pytestmark = pretend.POSSIBLE


def test_seconds_are_the_longest_of_computing_moving_and_launching():
    card = Card(half=1e12, single=1e11, efficiency=0.5, bandwidth=1e9, launch=1e-3)
    assert card.seconds(1e12, 0, torch.float16) == 2 and card.seconds(1e12, 0, torch.bfloat16) == 20
    assert card.seconds(1, 3_000_000_000, torch.float16) == 3
    assert card.seconds(1, 1, torch.float32) == 1e-3
    assert T4.memory < 15 * 2**30 and shown(T4.memory) == "14.70 GiB" and shown(2**20) == "1.0 MiB"


def test_a_ledger_holds_each_storage_once_and_what_passes_by():
    ledger = Ledger(Card())
    whole = torch.zeros(1000)
    for tensor in (whole, whole[10:], whole.view(10, 100)):
        ledger.store(tensor)
    assert (ledger.alive, ledger.count.peak) == (4000, 4000)
    ledger.pass_by(500)
    assert (ledger.alive, ledger.count.peak, ledger.highest) == (4000, 4500, 4500)
    assert ledger.restart().peak == 4500 and ledger.count.peak == 4000
    del whole, tensor
    assert ledger.alive == 0 and ledger.highest == 4500
    ledger.forget_highest()
    assert ledger.highest == 0


def test_what_held_it_is_named(card):
    base = tiny_llama(blocks=40).to("cuda")
    half_copied = {"memo": {1: torch.nn.Linear.__new__(torch.nn.Linear)}}
    names = {"base": base} | half_copied
    card.ledger.names = lambda: names
    held = torch.zeros(2**23, device="cuda")
    held, other = held + 1, held
    what = dict(card.ledger.holders())
    assert what["model base"] == sum(tensor.nbytes for tensor in (*base.parameters(), *base.buffers()))
    assert sum(what.values()) == card.ledger.alive
    assert what["elsewhere (2 tensors, the largest [8388608] float32)"] == 2 * 2**25
    del other


def test_work_is_counted_and_timed():
    with PretendGPU(Card(half=1e12, single=1e10, efficiency=0.5, bandwidth=1e9, launch=0)) as card:
        a = torch.ones(100, 200, device="cuda")
        card.ledger.restart()
        a @ a.T
        work = card.ledger.restart()
        assert work.flops == 2 * 100 * 200 * 100
        assert work.moved == 4 * (100 * 200 * 2 + 100 * 100)
        assert work.seconds == pytest.approx(4_000_000 / (1e10 * 0.5))
        a + a
        assert card.ledger.restart().seconds == pytest.approx(3 * 4 * 100 * 200 / 1e9)


def test_there_is_room_for_what_this_machine_has(card):
    card.ledger.spare = 10**15
    with pytest.raises(torch.cuda.OutOfMemoryError, match="This machine's memory is full"):
        torch.zeros(2**25, device="cuda")


def test_a_run_may_stand_for_several():
    ledger = Ledger(Card(half=1e12, single=1e10, efficiency=0.5, bandwidth=1e9, launch=0))

    def run():
        ledger.add_work(2.0, 10**9, torch.float32)
        ledger.add_busy(0.5)

    with ledger.standing_for(8):
        run()
    run()
    count = ledger.restart()
    assert (count.flops, count.moved, count.seconds, count.busy) == (18, 9 * 10**9, 9, 4.5)
    assert 0 < count.repeated < 1 and ledger.count.repeated == 0
