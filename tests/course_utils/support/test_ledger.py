"""What tensors hold: each storage once, whoever points to it, until it is gone."""

import torch

from course_utils.support.ledger import Ledger


def test_each_storage_counts_once_from_the_first_tensor_to_the_last():
    ledger, tensor = Ledger(), torch.zeros(1000)
    first, *others = [ledger.come(view) for view in (tensor, tensor[10:], tensor.view(10, 100))]
    assert first.size == 4000 and others == [None, None]
    ledger.come(torch.zeros(50))
    assert (ledger.alive, ledger.peak) == (4000, 4200), "the second is gone already"
    view = tensor[3:5]
    del tensor
    assert ledger.alive == 4000, "two numbers hold all of it"
    del view
    assert (ledger.alive, ledger.peak, ledger.stored) == (0, 4200, {})
    ledger.forget_peak()
    assert ledger.peak == 0


def test_what_was_there_before_counts_only_when_it_goes():
    ledger, older = Ledger(), torch.zeros(1000)
    ledger.was_there(older)
    ledger.come(older)
    assert (ledger.alive, ledger.peak) == (0, 0)
    del older
    assert ledger.alive == -4000, "it made room"
    newer = torch.zeros(1000)
    ledger.come(newer)
    assert (ledger.alive, ledger.peak) == (0, 0)


def test_a_storage_that_shrinks_and_grows_again():
    ledger, tensor = Ledger(), torch.zeros(1000)
    ledger.come(tensor)
    for size in (0, 8000, 400):
        tensor.untyped_storage().resize_(size)
        ledger.resized(tensor.untyped_storage())
        assert ledger.alive == size
    del tensor
    assert (ledger.alive, ledger.peak, ledger.stored) == (0, 8000, {})
