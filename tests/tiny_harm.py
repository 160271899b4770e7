"""What the tests of ``prompt_harm`` measure: a model with room for an answer, and prompts of a few words."""

import torch
from tiny import tiny_model, words

SETS = [[2], [2, 1], [3, 2, 1]]


def long_enough(family="llama"):
    return tiny_model(family, layers=4, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 128})


def texts():
    generator = torch.Generator().manual_seed(5)
    return [words(torch.randint(3, 97, (size,), generator=generator).tolist()) for size in (7, 1, 19, 4)]
