"""What a program sees of the pretended card, and that afterwards nothing is left of it."""

import subprocess
import sys
from pathlib import Path

import pretend
import pytest
import torch
from torch import nn

from course_tools.rehearsal.pretend_gpu import PretendGPU
from course_utils import session
from course_utils.models import tiny_llama

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pretend.POSSIBLE


def test_a_program_sees_a_t4(card):
    assert torch.cuda.is_available() and torch.cuda.get_device_name(0) == "Tesla T4"
    device = session.default_device()
    assert device.type == "cuda" and session.fast_dtype(device) is torch.float16
    free, total = torch.cuda.mem_get_info()
    held = torch.zeros(1000, device=device)
    assert torch.cuda.mem_get_info() == (free - 4000, total) and total == card.ledger.card.memory
    assert (held.device, held.is_cuda, held.cpu().is_cuda) == (torch.device("cuda", 0), True, False)
    torch.accelerator.synchronize()
    assert repr(held[:2]) == "tensor([0., 0.], device='cuda:0')"
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
        held.numpy()


def test_afterwards_there_is_none():
    with PretendGPU():
        pass
    assert not torch.cuda.is_available()
    assert session.default_device().type == "cpu"


def test_tied_weights_stay_tied_and_are_counted_once(card):
    model = tiny_llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    before = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    model.to("cuda")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert card.ledger.alive == before


def test_a_model_reads_in_inference_mode(card):
    model, ids = tiny_llama().to("cuda"), torch.arange(4, device="cuda")[None]
    with torch.no_grad():
        expected = model(ids).logits.cpu()
    with torch.inference_mode():
        assert torch.equal(model(ids).logits.cpu(), expected)


def test_a_program_may_keep_it_to_its_end():
    program = (
        "import torch; from course_tools.rehearsal.pretend_gpu import PretendGPU; PretendGPU().install();"
        "print(torch.ones(2, device='cuda').sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "2.0\n"


def test_autocast_is_refused_and_what_was_changed_is_put_back():
    changed = (torch.cuda.is_available, nn.Module._apply, torch.autocast.__init__)
    with PretendGPU():
        assert torch.cuda.is_available is not changed[0]
        with pytest.raises(NotImplementedError, match="no autocast"), torch.autocast("cuda"):
            pass
    assert (torch.cuda.is_available, nn.Module._apply, torch.autocast.__init__) == changed
    assert torch._C._is_multithreading_enabled() and not hasattr(torch, "ipu")
