"""The card of a model: what hubs read, what people read, and what it refuses."""

import math

import pandas as pd
import pytest
import tiny
from huggingface_hub import ModelCard

from course_utils.pruning.checkpoints import save_pruned
from course_utils.release.model_card import licence_of, write_model_card

CARD = {
    "name": "small",
    "base_model": "someone/large",
    "licence": "apache-2.0",
    "summary": "A smaller one.",
    "recipe": {"blocks": 2, "tokens": "1,000"},
    "measured": pd.DataFrame({"whole": ["3.0"], "small | cut": ["3.5 (3.4 to 3.6)"]}, index=["nats a token"]),
    "limits": ["It knows less."],
    "sources": ["arXiv 2407.14679"],
}


@pytest.fixture
def folder(tmp_path):
    return save_pruned(tiny.tiny_model("llama"), tiny.word_tokenizer(), tmp_path / "model")


def test_card_says_what_it_was_given_and_has_the_header_that_hubs_read(folder):
    path = write_model_card(folder, **CARD)
    card = ModelCard.load(path)
    assert (card.data.base_model, card.data.license, card.data.language) == ("someone/large", "apache-2.0", "en")
    assert card.data.tags == ["pruned", "distilled"] and card.data.pipeline_tag == "text-generation"
    for row in ("| tokens | 1,000 |", "|  | whole | small \\| cut |", "| nats a token | 3.0 | 3.5 (3.4 to 3.6) |"):
        assert row in card.text
    assert "- It knows less." in card.text and "- arXiv 2407.14679" in card.text


def damage():
    no = math.nan
    columns = {
        "nats_lost": [0.3, 1.2, 0.4, no], "ci_low": [0.25, 0.9, 0.2, no], "ci_high": [0.35, 1.5, 0.6, no],
        "right_before": [no, 0.9, 0.5, no], "right_after": [no, 0.2, 0.45, no], "floor": [no, 0.04, 0.1, no],
        "lost": [no, 70, 8, no], "won": [no, 0, 3, no], "p": [no, 1e-9, 0.2, no],
        "left_out": ["", "", "", "the whole model gets 5% right, and its floor is 5%"],
    }  # fmt: skip
    return pd.DataFrame(columns, index=pd.Index(["text", "copying", "German", "sums"], name="ability"))


def test_card_shows_what_else_was_lost_and_limits_what_lost_more_than_the_text(folder):
    card = write_model_card(folder, **CARD, damage=damage()).read_text(encoding="utf-8")
    for row in (
        "| ability | nats lost | right, whole → this | floor | lost, won |",
        "| text | 0.30 (0.25 to 0.35) |  |  |  |",
        "| copying | 1.20 (0.90 to 1.50) | 90% → 20% | 4% | 70, 0 |",
        "- It lost more of copying than of text: 1.20 (0.90 to 1.50) nats by each predicted token, beside 0.30.",
        "- What it lost of sums can't be told: the whole model gets 5% right, and its floor is 5%.",
    ):
        assert row in card, row
    assert "| sums |" not in card and "lost more of German" not in card and "lost more of text" not in card


def test_card_has_other_tables_and_says_what_was_compared(folder):
    tables = {"What bytes take:": pd.DataFrame({"tokens": [0.25]}, index=["code"])}
    more = {"damage": damage(), "compared_with": "a model with fewer tokens", "also_measured": tables}
    card = write_model_card(folder, **CARD, **more).read_text(encoding="utf-8")
    assert "\n\nWhat bytes take:\n\n|  | tokens |\n| --- | --- |\n| code | 0.25 |\n\n" in card
    assert "beside a model with fewer tokens;" in card


def test_second_card_takes_the_place_of_the_first(folder):
    """Of a local model: its header has no address. Without a profile it says nothing of abilities."""
    write_model_card(folder, **CARD)
    path = write_model_card(folder, **CARD | {"limits": ["It knows nothing."], "base_model": None})
    card = path.read_text(encoding="utf-8")
    assert "knows nothing" in card and not any(word in card for word in ("knows less", "base_model", "Nats lost"))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"limits": []}, "limits"), ({"measured": pd.DataFrame()}, "measured"), ({"recipe": {}}, "recipe"),
        ({"licence": " "}, "licence"), ({"base_model": ""}, "base_model"),
        ({"damage": pd.DataFrame({"nats": [1]})}, "damage"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_nothing_is_written(folder, wrong, named):
    with pytest.raises(ValueError, match=f"'{named}'"):
        write_model_card(folder, **CARD | wrong)
    assert not (folder / "README.md").exists()
    with pytest.raises(ValueError, match="save_pruned"):
        write_model_card(folder.parent, **CARD)


def test_licence_is_what_the_models_own_card_says(folder):
    assert licence_of(folder) == "unknown", "no card there"
    write_model_card(folder, **CARD)
    assert licence_of(str(folder)) == "apache-2.0"
    (folder / "README.md").write_text("A card without a header.", encoding="utf-8")
    assert licence_of(folder) == "unknown"
    assert licence_of("someone/not-cached") == "unknown", "no network in tests"
