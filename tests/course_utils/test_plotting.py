"""Figures render, and carry the labels, floors and bands that they promise."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from course_utils import plotting
from course_utils.components import principal_components


@pytest.fixture(autouse=True)
def fresh_figures():
    with plt.rc_context():
        yield
    plt.close("all")


def render(ax) -> None:
    png = io.BytesIO()
    ax.figure.savefig(png, format="png")
    assert png.getvalue().startswith(b"\x89PNG")


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_show_sends_the_picture_with_its_sentence_and_closes_it(monkeypatch):
    sent = {}
    monkeypatch.setattr("IPython.display.display", lambda data, **rest: sent.update(data=data, **rest))
    plt.plot([1, 2])
    plotting.show("A line that rises from 1 to 2.")
    assert base64.b64decode(sent["data"]["image/png"]).startswith(b"\x89PNG")
    assert sent["data"]["text/plain"] == sent["metadata"]["image/png"]["alt"] == "A line that rises from 1 to 2."
    assert not plt.get_fignums()


def test_show_refuses_no_figure_and_no_sentence():
    with pytest.raises(ValueError, match="no figure to show"):
        plotting.show("A line that rises from 1 to 2.")
    plt.plot([1, 2])
    with pytest.raises(ValueError, match="what stands out"):
        plotting.show("Perplexity")
    assert plt.get_fignums()


@pytest.fixture
def curve() -> pd.DataFrame:
    ratios = [0.0, 0.2, 0.4]
    rows = [
        {"criterion": name, "ratio": ratio, "value": 10 * factor**ratio, "ci_low": 9.0, "ci_high": 11 * factor**ratio}
        for name, factor in (("l1", 100), ("activation", 5))
        for ratio in ratios
    ]
    rows += [
        {"criterion": "random", "ratio": ratio, "value": 10 * (20 + seed) ** ratio}
        for seed in range(5)
        for ratio in ratios
    ]
    return pd.DataFrame(rows)


def test_style_is_applied_only_when_asked_and_twice_is_once():
    assert plt.rcParams["axes.titleweight"] == matplotlib.rcParamsDefault["axes.titleweight"]
    plotting.style()
    once = dict(plt.rcParams)
    plotting.style()
    assert dict(plt.rcParams) == once
    assert plt.rcParams["font.size"] > matplotlib.rcParamsDefault["font.size"]


def test_pruning_curve_shows_groups_control_and_floors(curve):
    ax = plotting.pruning_curve(curve, x_label="neurons removed (%)", y_label="accuracy", floors={"chance": 0.25})
    render(ax)
    assert legend(ax) == ["random (mean ± sd, n = 5)", "l1", "activation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("neurons removed (%)", "accuracy")
    assert "chance\n0.25" in [text.get_text() for text in ax.texts]
    assert "20%" in [tick.get_text() for tick in ax.get_xticklabels()]
    assert len(ax.collections) == 3  # one band each


@pytest.mark.parametrize("log_y", [False, True])
def test_the_controls_band_is_one_standard_deviation(curve, log_y):
    ax = plotting.pruning_curve(curve, x_label="x", y_label="perplexity", log_y=log_y)
    render(ax)
    values = curve.query("criterion == 'random' and ratio == 0.4")["value"]
    scaled = np.log(values) if log_y else values
    low, high = scaled.mean() - scaled.std(), scaled.mean() + scaled.std()
    if log_y:
        low, high = np.exp(low), np.exp(high)
    band = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[band[:, 0] == 0.4, 1].min(), band[band[:, 0] == 0.4, 1].max()], [low, high])
    assert ax.get_yscale() == ("log" if log_y else "linear")


def test_curve_with_seeds_draws_a_dot_for_each_seed_and_joins_medians():
    random = [{"criterion": "random", "ratio": r, "value": 10 * r + s} for r in (0.1, 0.2) for s in (0, 1, 8)]
    lines = [{"criterion": "L1", "ratio": r, "value": 5.0} for r in (0.1, 0.2)]
    ax = plotting.curve_with_seeds(
        pd.DataFrame(lines + random), x_label="removed", y_label="bits", floors={"guessing": 9.0}, log_y=True
    )
    medians, dots, l1 = ax.lines[:3]
    assert medians.get_ydata() == pytest.approx([2.0, 3.0])
    assert len(dots.get_xdata()) == 6
    assert list(l1.get_ydata()) == [5.0, 5.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["random, 3 seeds and their median", "L1"]
    assert [text.get_text() for text in ax.texts] == ["guessing\n9"]
    assert ax.get_yscale() == "log"
    with pytest.raises(ValueError, match="lacks the columns"):
        plotting.curve_with_seeds(pd.DataFrame(lines), y="bits", x_label="removed", y_label="bits")


def test_scores_with_intervals_draws_points_and_floors():
    rows = [
        {
            "model": model,
            "task": task,
            "value": 0.4,
            "ci_low": 0.3,
            "ci_high": 0.55,
            "chance": chance,
            "majority": np.nan,
        }
        for model in ("unpruned", "20 % pruned")
        for task, chance in (("lambada_openai", 0.0), ("arc_easy", 0.25), ("hellaswag", 0.25), ("winogrande", 0.5))
    ]
    frame = pd.DataFrame(rows)
    ax = plotting.scores_with_intervals(frame, x_label="task", y_label="accuracy")
    render(ax)
    assert legend(ax) == ["chance", "unpruned", "20 % pruned"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(dict.fromkeys(frame["task"]))
    assert sorted(x for bar in ax.containers for x in bar[0].get_xdata())[:2] == [-0.25, 0.25], "side by side"
    one_each = frame.groupby("task", sort=False).first().reset_index().assign(model=["a", "b", "b", "a"])
    alone = plotting.scores_with_intervals(one_each, x_label="task", y_label="accuracy", ax=plt.figure().subplots())
    placed = [x for bar in alone.containers for x in bar[0].get_xdata()]
    assert sorted(placed) == [0, 1, 2, 3], "a single point stands over its label"
    with pytest.raises(ValueError, match="metric"):
        plotting.scores_with_intervals(pd.concat([frame, frame]), x_label="task", y_label="accuracy")


def test_rows_with_intervals_has_values_and_marks_in_their_rows():
    ax = plotting.rows_with_intervals(
        {"by importance": (1.3, 1.2, 1.4), "last": (2.0, 1.8, 2.3)},
        marks={"last": 1.5}, at=1, at_label="unpruned", x_label="ratio",
    )  # fmt: skip
    render(ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["by importance", "last"] and ax.yaxis_inverted()
    points = [bar.lines[0] for bar in ax.containers]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [(1.3, 0), (2.0, 1)]
    assert [cap.get_xdata()[0] for cap in ax.containers[0].lines[1]] == pytest.approx([1.2, 1.4])
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"] == [1.5]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["estimate"]
    assert plotting.rows_with_intervals({"a": (0, -1, 1)}, x_label="x").get_legend() is None
    with pytest.raises(ValueError, match="no values"):
        plotting.rows_with_intervals({}, x_label="x")


def test_against_random_draws_a_dot_a_set_and_names_what_lies_beyond():
    choices = {"by influence": (1.3, 1.2, 1.4), "first 3": (8284.0, 5530.0, 12408.0)}
    controls = {"random": [1.5, 1.7, 2.4], "with an end": [1.9, 40.0, 900.0], "wrecks": [70.0]}
    ax = plotting.against_random(choices, controls, x_label="perplexity, × unpruned", limit=20, lines={"unpruned": 1})
    render(ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [*choices, *controls]
    assert ax.yaxis_inverted() and ax.get_xscale() == "log"
    dots = [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "."]
    assert dots == [3, 1, 0]
    assert {text.get_text() for text in ax.texts} == {"×8,284", "2 sets, ×40 to ×900", "×70", "unpruned"}
    assert "2" in [tick.get_text() for tick in ax.get_xticklabels()]
    for nothing in ({}, {"random": []}):
        with pytest.raises(ValueError, match="at least one set"):
            plotting.against_random({}, nothing, x_label="ratio", limit=2)


def test_against_random_says_where_an_interval_goes_on_beyond_the_edge():
    choices = {"ends": (1.3, 1.2, 1.4), "goes on": (69.2, 37.9, 126.1)}
    ax = plotting.against_random(choices, {"random": [1.5, 33.0]}, x_label="perplexity, × unpruned", limit=100)
    render(ax)
    caps = [[cap.get_visible() for cap in container.lines[1]] for container in ax.containers]
    assert caps == [[True, True], [True, False]]
    heads = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == ">"]
    assert heads == [(100, 1)]
    assert [text.get_text() for text in ax.texts] == ["to ×126"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1, 40, ["1", "2", "5", "10", "20"]),
        (30, 100, ["30", "50", "70"]),
        (1, 2, ["1.2", "1.6"]),
        (10, 20_000, ["10", "100", "1,000", "10,000"]),
        (1, 1e9, ["$"]),
    ],
)
def test_log_ticks_are_numbers_that_one_can_read(low, high, labels):
    _, ax = plt.subplots()
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    plotting.log_ticks(ax.yaxis)
    render(ax)
    found = [label.get_text() for label in ax.get_yticklabels()]
    assert all(any(label in text for text in found) for label in labels)
    assert not any(label.get_text() for label in ax.get_yticklabels(minor=True))


def test_heatmap_writes_its_numbers():
    ax = plotting.heatmap(
        pd.DataFrame([[1.0, 2.0], [3.0, 4.5]], index=["a", "b"], columns=["c", "d"]),
        x_label="evaluated on", y_label="calibrated on", value_label="perplexity", fmt=".1f",
    )  # fmt: skip
    render(ax)
    assert [text.get_text() for text in ax.texts] == ["1.0", "2.0", "3.0", "4.5"]
    assert ax.collections[0].colorbar.ax.get_ylabel() == "perplexity"


def test_heatmaps_share_a_scale_when_told():
    labels = {"x_label": "site", "y_label": "block", "value_label": "ratio"}
    matrix = pd.DataFrame([[0.9, 1.6], [np.nan, 1.0]], columns=["attention_out", "mlp_out"])
    ax = plotting.heatmap(matrix, center=1.0, limit=0.5, numbers=False, **labels)
    render(ax)
    assert ax.collections[0].get_clim() == (0.5, 1.5)
    assert ax.collections[0].colorbar.extend == "both"  # 1.6 lies beyond
    assert not ax.texts
    ax = plotting.heatmap(matrix, center=1.0, limit=1.0, **labels)
    assert ax.collections[0].get_clim() == (0.0, 2.0) and ax.collections[0].colorbar.extend == "neither"
    assert [text.get_text() for text in ax.texts] == ["0.90", "1.60", "1.00"]
    for bad in ({"limit": 0.5}, {"limit": 0.0, "center": 1.0}, {"limit": -1.0, "center": 1.0}):
        with pytest.raises(ValueError, match="distance above 0"):
            plotting.heatmap(matrix, **bad, **labels)


def test_long_labels_are_tilted():
    sites = ["attention_out", "mlp_out", "down_input", "attention_norm"]
    ax = plotting.heatmap(pd.DataFrame(np.eye(4), columns=sites), x_label="x", y_label="y", value_label="v")
    render(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == sites
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {20.0}


def test_a_line_for_each_axis_with_its_interval_beside_the_control():
    """What the differential view needs: ``pruning_curve`` over blocks."""
    rows = [
        {"axis": name, "block": block, "ratio": level, "ci_low": level - 0.1, "ci_high": level + 0.2}
        for name, level in (("gender", 1.2), ("neutral", 1.0))
        for block in range(4)
    ]
    ax = plotting.pruning_curve(
        pd.DataFrame(rows), x="block", y="ratio", group="axis", control="neutral", x_percent=False,
        x_label="block", y_label="ratio",
    )  # fmt: skip
    render(ax)
    assert legend(ax) == ["neutral", "gender"]
    for band, level in zip(ax.collections, (1.0, 1.2), strict=True):
        heights = band.get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((level - 0.1, level + 0.2))


def test_components_show_points_explained_variance_and_both_nulls():
    states = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    result = principal_components(states, ["gender"] * 20 + ["neutral"] * 10, components=4, shuffles=50)
    left, right = plotting.components(result, title="Differences, block 15")
    render(left)
    assert legend(left) == ["gender (n = 20)", "neutral (n = 10)"]
    assert [len(points.get_offsets()) for points in left.collections] == [20, 10]
    np.testing.assert_allclose(left.collections[0].get_offsets(), result.points[:20, :2])
    share = 100 * float(result.explained[0])
    assert left.get_xlabel() == f"component 1 ({share:.1f} % of the variance)"
    assert f"p = {result.p:.2g}" in left.texts[0].get_text() and left.get_title() == "Differences, block 15"
    assert legend(right) == ["shuffled (n = 20)", "as measured"]
    np.testing.assert_allclose(right.lines[1].get_ydata(), result.explained)
    np.testing.assert_allclose(right.lines[0].get_ydata(), result.explained_shuffled.mean(dim=0))
    band = right.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(float(result.explained_shuffled.max()))
    mine = plt.subplots(1, 2)[1]
    assert plotting.components(result, axes=mine) == tuple(mine)
    with pytest.raises(ValueError, match="two"):
        plotting.components(result, axes=[left])


def test_histogram_shares_add_up_to_one():
    ax = plotting.histogram({"l1": torch.rand(100), "l2": [1.0, 2.0]}, x_label="importance", bins=10)
    render(ax)
    heights = sum(patch.get_height() for patch in ax.patches if isinstance(patch, matplotlib.patches.Rectangle))
    assert heights == pytest.approx(2)
    assert legend(ax) == ["l1", "l2"]


def test_show_tensor_greys_what_is_removed():
    tensor = torch.arange(25.0).reshape(5, 5) - 0.01
    ax = plotting.show_tensor(tensor, removed_rows=[1], removed_columns=[3], x_label="input", y_label="neuron")
    render(ax)
    assert [text.get_text() for text in ax.texts[:2]] == ["0.0", "1.0"]  # no "-0.0"
    assert len(ax.lines) == 9  # five in the row, five in the column, one in both
    assert ax.get_ylabel() == "neuron"
    render(plotting.show_tensor(torch.rand(4).bfloat16()))


def test_figures_refuse_what_they_cannot_draw(curve):
    with pytest.raises(ValueError, match="accuracy"):
        plotting.pruning_curve(curve, y="accuracy", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="no rows"):
        plotting.pruning_curve(curve[:0], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="empty"):
        plotting.heatmap(pd.DataFrame(), x_label="x", y_label="y", value_label="v")
    with pytest.raises(ValueError, match="finite"):
        plotting.histogram({"scores": [1.0, float("nan")]}, x_label="x")
    with pytest.raises(ValueError, match="positive"):
        plotting.histogram({"scores": [0.0, 1.0]}, x_label="x", log_x=True)
    with pytest.raises(ValueError, match="shape"):
        plotting.show_tensor(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match=r"\[5\]"):
        plotting.show_tensor(torch.zeros(5, 5), removed_rows=[5])


def test_ability_and_bias_lists_the_broken_and_greys_the_control():
    rows = {
        "unpruned": (1, 1, 1, -8, -12, -4), "random 0": (1.05, np.nan, np.nan, -7.5, np.nan, np.nan),
        "protect first": (1.02, 1, 1.04, -3, -5, -1), "reacts": (79, 30, 207, -0.2, -3, 3),
    }  # fmt: skip
    columns = ["price", "price_low", "price_high", "bias", "bias_low", "bias_high"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    ax = plotting.ability_and_bias(frame, y_label="preference, nats")
    render(ax)
    assert set(legend(ax)) == {"random", "unpruned", "protect first"}
    assert any("reacts: × 79, -0.20" in text.get_text() for text in ax.texts)
    assert ax.get_xlim()[1] < 2.6
    with pytest.raises(ValueError, match="lacks the columns"):
        plotting.ability_and_bias(frame.drop(columns="price"), y_label="x")


def test_against_random_writes_values_without_an_interval_and_draws_the_median():
    ax = plotting.against_random(
        {"l1": 380.0, "activation": 1.2}, {"random": [1.7, 2.1, 1.9], "block 0 spared": [1.4]}, x_label="× unpruned"
    )
    render(ax)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [1.9]
    assert [text.get_text() for text in ax.texts] == ["380", "1.2"] and ax.get_xlim()[1] > 900
    with pytest.raises(ValueError, match="values above 0"):
        plotting.against_random({"l1": 0.0}, {"random": [1.0]}, x_label="x")


def test_before_and_after_has_a_line_a_case_and_named_ones():
    frame = pd.DataFrame(
        {"before": [4800.0, 87.0], "after": [124.0, 54.0], "group": ["worn", "kept"]}, index=["worn, KL", "kept, KL"]
    )
    ax = plotting.before_and_after(frame, x_label="perplexity", lines={"teacher": 36.0}, log_x=True)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["worn, KL", "kept, KL"]
    joined = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert joined == [[4800.0, 124.0], [87.0, 54.0]]
    assert "teacher" in [text.get_text() for text in ax.texts]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
    render(ax)
    with pytest.raises(ValueError, match="lacks the columns"):
        plotting.before_and_after(frame[["before"]], x_label="perplexity")


def test_paired_differences_stand_beside_zero():
    frame = pd.DataFrame(
        {
            "case": ["half", "half", "none"],
            "measure": ["KL", "perplexity", "KL"],
            "difference": [0.1, -0.02, 0.3],
            "ci_low": [0.05, -0.06, 0.2],
            "ci_high": [0.15, 0.02, 0.4],
        }
    )
    ax = plotting.paired_differences(frame, x_label="nats a token")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["half", "none"]
    assert legend(ax) == ["KL", "perplexity"]
    assert [line.get_xdata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 0]] == [0]
    render(ax)
    assert plotting.paired_differences(frame[frame.measure == "KL"], x_label="nats").get_legend() is None
    with pytest.raises(ValueError, match="no rows"):
        plotting.paired_differences(frame[:0], x_label="nats")
