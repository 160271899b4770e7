"""Answers of a model's own: batched as one by one, the same file after a kill, and only they are learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, tiny_model, word_tokenizer
from transformers import AutoTokenizer

import course_utils
from course_utils import self_data
from course_utils.own_text import read_own_text
from course_utils.self_data import Prompt, find_prompts, write_answers

TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('who?') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    found = AutoTokenizer.from_pretrained(Path(course_utils.__file__).parent / "data" / "gpt2", local_files_only=True)
    found.chat_template = TEMPLATE
    return found


def chat(*contents, first="user"):
    other = {"user": "assistant", "assistant": "user"}
    roles = [first if turn % 2 == 0 else other[first] for turn in range(len(contents))]
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def own(folder, *sources, seed=0):
    judge = write(folder / "judge.jsonl", [{"text": f"judges {number}"} for number in range(3)])
    return read_own_text([*sources], judge=[judge], seed=seed)


def asked(prompts):
    return [prompt.messages[-1]["content"] for prompt in prompts]


def test_prompts_are_what_stands_before_an_answer(tokenizer, tmp_path):
    rows = [chat(f"one {n}", "yes", f"two {n}", "no", f"three {n}", "maybe") for n in range(6)]
    (first, *others) = find_prompts(own(tmp_path, write(tmp_path / "c.jsonl", rows)), tokenizer, 5, longest=99)
    assert len(others) == 4 and [message["role"] for message in first.messages] == ["user", "assistant"] * 2 + ["user"]
    assert tokenizer.decode(first.ids) == (
        "<user>one 0</>\n<assistant>yes</>\n<user>two 0</>\n<assistant>no</>\n<user>three 0</>\n<assistant>"
    )


def test_who_judges_or_chooses_gives_no_prompt_and_sources_share_by_weight(tokenizer, tmp_path):
    many = write(tmp_path / "many.jsonl", [chat(f"m{number}", "yes") for number in range(200)])
    few = write(tmp_path / "few.jsonl", [chat(f"f{number}", "yes") for number in range(20)])
    text = write(tmp_path / "text.jsonl", [{"text": "no chat"}] * 9)
    found = read_own_text([text, f"{many}:3", few])
    held_out = {document.messages[0]["content"] for document in (*found.choosing, *found.judging) if document.messages}
    prompts = asked(find_prompts(found, tokenizer, 40, longest=99))
    assert [prompt[0] for prompt in prompts] == ["m"] * 30 + ["f"] * 10 and len({*prompts}) == 40
    assert held_out and not held_out & {*prompts}
    numbers = sorted(int(prompt[1:]) for prompt in prompts[:30])
    assert numbers[0] < 20 and numbers[-1] > 180, "from all over"
    everything = asked(find_prompts(read_own_text([few]), tokenizer, 17, longest=99))
    assert len({*everything}) == 17


def test_too_few_prompts_are_refused_with_the_reasons(tokenizer, tmp_path):
    rows = [chat("long " * 50, "yes"), chat("hello", first="assistant"), chat("bad", "yes"), chat("why?", "yes")]
    found = own(tmp_path, write(tmp_path / "c.jsonl", [rows[0], *rows]), seed=3)
    with pytest.raises(ValueError, match=r"c.jsonl is asked for 4 prompts of at most 30 tokens, and \d of its") as told:
        find_prompts(found, tokenizer, 4, longest=30)
    reasons = ["line 1: its prompt has ", "no message has the role 'user'", "the chat template refuses it (who?)"]
    assert sum(reason in str(told.value) for reason in reasons) >= 2, told.value
    only_text = own(tmp_path, write(tmp_path / "t.jsonl", [{"text": "a"}, {"text": "b"}]))
    with pytest.raises(ValueError, match="There is no chat to learn"):
        find_prompts(only_text, tokenizer, 1, longest=30)


def test_who_has_no_template_is_told(tmp_path):
    found = own(tmp_path, write(tmp_path / "c.jsonl", [chat("a", "b"), chat("c", "d")]))
    with pytest.raises(ValueError, match=r"no chat template, and c.jsonl, line \d is a chat"):
        find_prompts(found, word_tokenizer(), 1, longest=30)


def made_up(count, vocabulary=97):
    """Prompts of many lengths."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, vocabulary, (1 + 3 * n % 7,), generator=draw).tolist() for n in range(count)]
    return [Prompt(({"role": "user", "content": f"{n}"},), tuple(row)) for n, row in enumerate(ids)]


def lines(path):
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def ending(family="llama"):
    """A random model that stops now and then."""
    model = tiny_model(family)
    model.generation_config.eos_token_id = [*range(5, 97, 3)]
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_is_one_by_one(family, tmp_path):
    model, tokenizer = ending(family), word_tokenizer()
    model.generation_config.repetition_penalty, model.generation_config.do_sample = 5.0, True  # don't count
    own_settings = model.generation_config
    prompts = made_up(7)
    together = write_answers(model, tokenizer, prompts, tmp_path, new_tokens=12, batch_size=4)
    assert model.generation_config is own_settings
    model.generation_config.repetition_penalty = model.generation_config.do_sample = None
    finished = 0
    for prompt, (question, answer) in zip(prompts, lines(together), strict=True):
        ids = torch.tensor([prompt.ids])
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        new = wanted[0, len(prompt.ids) :].tolist()
        stops = [place for place, token in enumerate(new) if token in model.generation_config.eos_token_id]
        assert answer["content"] == tokenizer.decode(new[: stops[0]] if stops else new, skip_special_tokens=True)
        assert question == prompt.messages[0] and (answer.get("weight") == 0) == (not stops)
        finished += bool(stops)
    assert len({answer["content"] for _, answer in lines(together)}) > 1 and finished


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("torn", [b"", b'{"messages": [{"role'])
def test_a_killed_run_ends_with_the_file_of_an_unbroken_one(temperature, torn, tmp_path, monkeypatch):
    model, tokenizer, prompts = ending(), word_tokenizer(), made_up(11)
    options = {"new_tokens": 6, "batch_size": 4, "temperature": temperature, "seed": 1}
    unbroken = write_answers(model, tokenizer, prompts, tmp_path / "unbroken", **options)
    generate, asked_for = self_data._generate, []

    def noted(model, prompts, **more):
        if len(asked_for) == 1:
            raise KeyboardInterrupt
        asked_for.append(len(prompts))
        return generate(model, prompts, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(self_data, "_generate", noted)
        write_answers(model, tokenizer, prompts, tmp_path / "killed", **options)
    (there,) = (tmp_path / "killed").iterdir()
    whole = unbroken.read_bytes().splitlines(keepends=True)
    assert there.read_bytes() == b"".join(whole[:4])
    there.write_bytes(b"".join(whole[: 6 if torn else 4]) + torn)  # killed while it wrote the second batch
    torch.manual_seed(99)
    state = torch.get_rng_state()
    monkeypatch.setattr(self_data, "_generate", lambda *a, **k: asked_for.append(len(a[1])) or generate(*a, **k))
    again = write_answers(model, tokenizer, prompts, tmp_path / "killed", **options)
    assert again.name == unbroken.name and again.read_bytes() == unbroken.read_bytes() and asked_for == [4, 4, 3]
    assert write_answers(model, tokenizer, prompts, tmp_path / "killed", **options) == again and len(asked_for) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_two_who_write_the_same_write_it_once(tmp_path, monkeypatch):
    model, tokenizer, prompts = ending(), word_tokenizer(), made_up(8)
    options = {"new_tokens": 6, "batch_size": 4}
    unbroken = write_answers(model, tokenizer, prompts, tmp_path / "one", **options)
    generate, begun = self_data._generate, []

    def with_another(*args, **more):
        begun.append(1)
        if len(begun) == 2:
            write_answers(model, tokenizer, prompts, tmp_path / "two", **options)
        return generate(*args, **more)

    monkeypatch.setattr(self_data, "_generate", with_another)
    both = write_answers(model, tokenizer, prompts, tmp_path / "two", **options)
    assert len(begun) == 3 and both.read_bytes() == unbroken.read_bytes()


def test_other_wishes_have_files_of_their_own(tmp_path):
    model, tokenizer, prompts = ending(), word_tokenizer(), made_up(4)
    usual = {"new_tokens": 6, "temperature": 1.0}
    wishes = [{}, {"seed": 1}, {"temperature": 0.5}, {"temperature": 0.0}, {"new_tokens": 5}, {"batch_size": 2}]
    paths = [write_answers(model, tokenizer, prompts, tmp_path, **usual | wish) for wish in wishes]
    paths.append(write_answers(model, tokenizer, prompts[::-1], tmp_path, **usual))
    paths.append(write_answers(ending("gpt2"), tokenizer, prompts, tmp_path, **usual))
    assert len({*paths}) == len(paths)
    assert lines(paths[0]) != lines(paths[1]) and lines(paths[0]) != lines(paths[3])
    greedy = {**usual, "temperature": 0.0}
    assert write_answers(model, tokenizer, prompts, tmp_path, **greedy, seed=3) == paths[3], "nothing is drawn"


def test_a_low_temperature_takes_the_likeliest(tmp_path):
    model, tokenizer, prompts = ending(), word_tokenizer(), made_up(4)
    cold, colder, greedy = (
        write_answers(model, tokenizer, prompts, tmp_path, new_tokens=6, temperature=heat)
        for heat in (1e-4, 1e-99, 0.0)
    )
    assert cold != greedy == colder and lines(cold) == lines(greedy)


def test_only_the_answers_are_learned(tokenizer, tmp_path, monkeypatch):
    """Not what the user's file has the assistant say, nor what never came to its end."""
    rows = [chat(f"one {n}", f"theirs {n}", f"two {n}", f"also theirs {n}") for n in range(9)]
    found = own(tmp_path, write(tmp_path / "c.jsonl", rows))
    prompts = find_prompts(found, tokenizer, 4, longest=60)
    end, said = tokenizer.eos_token_id, [f" ours , {n} ." for n in range(4)]
    answers = [[*tokenizer(text)["input_ids"], *([end, 1, 1] if n < 3 else [])] for n, text in enumerate(said)]
    monkeypatch.setattr(self_data, "_generate", lambda *_, **__: answers)
    with monkeypatch.context() as patch:
        for cleaning in (
            "",
            "_for_bpe_even_though_it_will_corrupt_output",
        ):  # a tokenizer's own wish, which doesn't count
            patch.setattr(tokenizer, f"clean_up_tokenization_spaces{cleaning}", True)
        path = write_answers(tiny_model(), tokenizer, prompts, tmp_path, new_tokens=8)
    answered = found.answered(path)
    assert answered.contents[0].chats == 3 and answered.left_out.count == 1 and answered.digest != found.digest
    assert (answered.judging, answered.choosing) == (found.judging, found.choosing)
    batches = answered.learned(tokenizer, rows=3, length=128, folder=tmp_path)
    learned = {
        tokenizer.decode(ids[kept])
        for batch in batches
        for ids, kept in zip(batch["input_ids"], batch["labels"] >= 0, strict=True)
    }
    assert learned == {f" ours , {n} .</>\n" for n in range(3)}
    with pytest.raises(ValueError, match="None of 1 answers came to its end"):
        found.answered(write(tmp_path / "none.jsonl", [{"messages": lines(path)[3]}]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "'prompts'"),
        ({"new_tokens": 0}, "'new_tokens' must be a whole number of at least 1"),
        ({"batch_size": 0}, "'batch_size' must be a whole number of at least 1"),
        ({"temperature": -1.0}, "'temperature'"),
        ({"temperature": float("nan")}, "'temperature'"),
        ({"seed": -1}, "'seed'"),
    ],
)
def test_bad_input_writes_nothing(change, message, tmp_path):
    arguments = {"prompts": made_up(2), "new_tokens": 3} | change
    with pytest.raises(ValueError, match=message):
        write_answers(tiny_model(), word_tokenizer(), folder=tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()
