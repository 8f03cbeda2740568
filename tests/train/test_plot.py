"""loss.png: drawn from whatever a run left, or one line that says why not."""

import json

import numpy as np
import pytest

from jaxgen.train import plot

pytest.importorskip("matplotlib")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def steps(count):
    rate = {"learning_rate": 1e-3, "streak": 0.0}
    return [{"step": s, "kind": "train", "loss": 5 - s / 50, **rate} for s in range(1, count + 1)]


def shown(metrics):
    """The text on the figure that draw_loss would save."""
    records = [plot.decode(line) for line in metrics.read_bytes().splitlines(keepends=True)]
    train = plot._columns(records, "train", ("loss", "learning_rate", "streak"))
    valid = plot._columns(records, "valid", ("loss",))
    figure = plot._figure(train, valid, plot._skips(records), "a run")
    texts = [t.get_text() for t in figure.texts]
    return " ".join(texts + [t.get_text() for axes in figure.axes for t in axes.texts]), figure


def test_the_picture_is_a_png_and_labels_its_curves_directly(tmp_path):
    rows = steps(60)
    for step, loss in ((20, 4.7), (40, 4.1), (60, 4.4)):
        rows.append({"step": step, "kind": "valid", "loss": loss})
    metrics = write(tmp_path / "metrics.jsonl", rows)
    assert (
        plot.draw_loss(metrics, tmp_path / "plots" / "loss.png", title="a run at 5$ of \\x") is None
    )
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    text, _ = shown(metrics)
    for part in ("a run", "training 3.", "validation 4.400", "best 4.100", "peak 0.001"):
        assert part in text


def test_skipped_steps_are_marked_and_leave_the_curve_alone(tmp_path):
    rows = steps(60)
    rows[29] |= {"loss": 900.0, "streak": 1.0}
    rows[30] |= {"loss": None, "streak": 2.0}
    text, figure = shown(write(tmp_path / "metrics.jsonl", rows))
    assert "2 steps skipped" in text
    assert figure.axes[0].get_ylim()[1] < 6
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert list(marks[0].get_xdata()) == [30, 31]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_of_few_steps_is_drawn(tmp_path, count):
    metrics = write(tmp_path / "metrics.jsonl", steps(count))
    assert plot.draw_loss(metrics, tmp_path / "loss.png", title="short") is None


def test_labels_never_overlap():
    labels = [(1.0, "training", "b"), (1.001, "validation", "r")]
    (first, _), (second, _) = plot._spread(labels, (0.9, 4.0))
    assert first - second >= plot.APART * 3.1 * 0.999
    assert second > 0.9


@pytest.mark.parametrize("content", ["", "{half\n", '{"step": 1, "kind": "train", "loss": null}\n'])
def test_nothing_to_draw_is_said_in_one_line(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    answer = plot.draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="x")
    assert answer.startswith("no loss.png") and "\n" not in answer
    assert not (tmp_path / "loss.png").exists()


def test_absent_matplotlib_is_said_with_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    answer = plot.draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png", title="x")
    assert 'pip install "jaxgen[plot]"' in answer


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path):
    metrics = write(tmp_path / "metrics.jsonl", steps(5))
    answer = plot.draw_loss(metrics, metrics / "loss.png", title="x")
    assert answer.startswith("no loss.png") and "\n" not in answer


@pytest.mark.parametrize(("count", "span"), [(1, 1), (7, 3), (100, 9), (5, 40)])
def test_running_mean_equals_the_mean_of_its_window(count, span):
    values = np.random.default_rng(0).normal(size=count)
    found = plot.running_mean(values, span)
    for i in range(count - 1):
        half = min(span // 2, i, count - 1 - i)
        np.testing.assert_allclose(found[i], values[i - half : i + half + 1].mean())
    assert found.shape == values.shape and np.isfinite(found).all()
