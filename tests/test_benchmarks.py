"""The benchmarks compare like with like: their textbook computes what the package computes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, memory, parts, scale, sweeps, tutorial, waiting
from benchmarks.beam import PLAIN
from benchmarks.measure import Figure, matrix_rate, time_in_turns
from benchmarks.textbook import Textbook, rows
from benchmarks.training import Step, batch_of, decoder_of, errors, multiply_adds
from captioning.captioners.choices import NAMES
from captioning.decoding import Beam
from captioning.kernels.backend import Backend, current_backend, use_backend


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_in_single_precision_loss_and_gradients_are_the_oracles(backend: Backend) -> None:
    of_loss, of_gradients = errors("fp32", backend, words=50, locations=9)
    assert of_loss < 1e-6
    assert of_gradients < 1e-5


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_in_bf16_they_are_near(backend: Backend) -> None:
    of_loss, of_gradients = errors("bf16", backend, words=50, locations=9)
    assert 0 < of_loss < 1e-3
    assert 1e-4 < of_gradients < (0.02 if backend == "auto" else 0.03)


def test_the_textbooks_beam_search_writes_the_same_captions() -> None:
    torch.manual_seed(0)
    decoder = decoder_of(words=30, size=16, attention_dim=16).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
        decoder.output_words.bias[:2] = -1e4  # the textbook may write <pad> and <start>
    grid, _ = batch_of(torch.Generator().manual_seed(0), images=8, locations=9, words=30)
    textbook = Textbook(decoder).eval()
    search = Beam(beam_size=3, max_length=8, length_penalty=0.0, **PLAIN)
    ours = [hypotheses[0].tokens for hypotheses in search(decoder, grid)]
    theirs = [[t for t in textbook.beam(image, 3, 8) if t != 2] for image in grid]
    assert ours == theirs
    assert len({tuple(caption) for caption in ours}) > 1


def test_the_epoch_that_a_gpu_is_measured_with_runs_on_any_device() -> None:
    figure = gpu.epoch(torch.device("cpu"), rounds=1, images=32, locations=9)
    assert figure.name == "an epoch of 160 captions"
    assert figure.floor is not None
    assert 0 < figure.floor < figure.value
    generator = torch.Generator().manual_seed(0)
    words = sum(
        int((batch_of(generator, locations=9)[1][..., 1:] != 0).sum()) for _ in range(32 // 16)
    )
    needed = 3 * 2 * multiply_adds(words, images=32, locations=9)
    assert figure.floor == pytest.approx(needed / matrix_rate(torch.bfloat16, "cpu"))


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_so_does_the_epoch_in_lightnings_loop() -> None:
    figure = gpu.trained("cpu", "32-true", images=32, epochs=2)
    assert figure.value > 0
    assert "; 0 graphs" in figure.note  # which are for a GPU alone


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_runs_that_share_a_gpu_are_compared_with_one_alone() -> None:
    ours, again, longer = (
        sweeps.train(sweeps.Settings("cpu", "32-true", images=32, epochs=epochs))
        for epochs in (2, 2, 3)
    )
    assert len(ours.ends) == 2
    assert sorted(longer.ends) == longer.ends
    assert ours.weights == again.weights != longer.weights


def test_a_run_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="A run failed"):
        sweeps.train_at_once(2, {}, sweeps.Settings("cpu"))


def test_the_rate_of_runs_counts_only_the_time_in_which_all_train() -> None:
    alone = sweeps.Trained([10.0, 12.0, 14.0], "a")
    assert sweeps.epochs_per_second([alone]) == pytest.approx(0.5)
    # From 20 to 24 seconds, the first run completes two epochs, and the second one.
    runs = [sweeps.Trained([18.0, 20.0, 22.0, 24.0], "a"), sweeps.Trained([20.0, 24.0, 40.0], "b")]
    assert sweeps.epochs_per_second(runs) == pytest.approx(3 / 4)
    figure = sweeps.sharing("two", runs, alone)
    assert figure.value == pytest.approx(1.5)
    assert "1 of 2 have the same weights" in figure.note
    with pytest.raises(RuntimeError, match="give them more epochs"):
        sweeps.epochs_per_second([alone, runs[0]])


def test_the_captions_are_as_long_as_said() -> None:
    _, tokens = batch_of(torch.Generator().manual_seed(0), images=50)
    words = (tokens != 0).sum(-1) - 2
    assert (words.min(), words.max()) == (9, 17)
    flat, order = rows(torch.zeros(50, 1, 512), tokens)
    assert len(flat) == len(order) == 250
    assert (order != 0).sum(1).diff().max() <= 0


def test_the_floor_is_what_the_forward_pass_multiplies() -> None:
    """As PyTorch counts it, which leaves out C functions and the products with one vector, v."""
    sizes: dict[str, Any] = {"words": 100, "size": 64, "attention_dim": 48}
    of_batch: dict[str, Any] = {"images": 2, "locations": 100, "words": 100, "lengths": (12, 12)}
    grid, tokens = batch_of(torch.Generator().manual_seed(0), **of_batch)
    counter = FlopCounterMode(display=False)
    with use_backend("torch"), counter, torch.no_grad():
        decoder_of(**sizes).eval()(grid, tokens)
    words = int((tokens[..., 1:] != 0).sum())
    needed = multiply_adds(words, images=2, locations=100, **sizes)
    assert counter.get_total_flops() / 2 == needed - words * 100 * 48


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], None]]:
    """Make work that takes a number of seconds on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])

    def taking(seconds: float) -> Callable[[], None]:
        def work() -> None:
            now[0] += seconds

        return work

    return taking


def test_a_ratio_says_how_many_times_faster_ours_is(monkeypatch: pytest.MonkeyPatch) -> None:
    taking = clock(monkeypatch)
    timed = time_in_turns(taking(2.0), taking(6.0), rounds=3, repeat=4)
    assert timed == pytest.approx((2.0, 6.0, 3.0))


def test_the_floor_that_is_reached_is_at_most_the_whole() -> None:
    cells = Figure("a", 50, "images/s", reference=25, ratio=2, floor=200).row
    assert cells == ["a", "50 images/s", "25", "2.0 x", "200 (25%)", ""]
    assert Figure("", 8, "s", ratio=0.25, floor=2).row[3:5] == ["0.25 x", "2 (25%)"]


@pytest.mark.parametrize(
    ("precision", "backend"), [("bf16", "auto"), ("bf16", "torch"), ("fp32", "auto")]
)
def test_a_step_trains_as_it_says(precision: str, backend: Backend) -> None:
    """In its precision, by its backend, and by the gradients of its batch alone."""
    decoder = decoder_of(words=30, size=8, attention_dim=8, dropout=0.0, recurrent_dropout=0.0)
    batch = batch_of(torch.Generator(), images=2, locations=4, words=30)
    step, seen = Step(decoder, precision, backend), []
    decoder.register_forward_hook(
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), current_backend()))
    )
    weight = decoder.output_hidden.weight
    step.optimizer.param_groups[0]["lr"] = 0.0
    step(*batch)
    first, before = weight.grad.clone(), weight.detach().clone()
    step(*batch)
    torch.testing.assert_close(weight.grad, first)
    assert torch.equal(weight, before)
    step.optimizer.param_groups[0]["lr"] = 0.1
    step(*batch)
    assert not torch.equal(weight, before)
    assert {*seen} == {(precision == "bf16", backend)}


def test_a_goal_is_a_least_rate_a_greatest_time_or_a_least_ratio() -> None:
    assert Figure("", 60, "images/s", goal_value=50).goal == "50 images/s"
    assert Figure("", 40, "images/s", goal_value=50).goal == "50 images/s: not met"
    assert Figure("", 2, "s", goal_value=3).goal == "3 s"
    assert Figure("", 4, "s", goal_value=3).goal == "3 s: not met"
    assert Figure("", 1, "s", ratio=0.6, goal_ratio=0.5).goal == "0.5 x"
    assert Figure("", 1, "s", ratio=0.4, goal_ratio=0.5).goal == "0.5 x: not met"
    assert Figure("", 1, "s").goal == ""


@pytest.mark.parametrize("name", ["attn_lstm", "lstm", "hard_attn_lstm", "adaptive_lstm"])
def test_every_decoder_that_is_measured_has_the_sizes_asked_for(name: str) -> None:
    decoder = parts.decoders(words=40, units=16)[name]
    assert NAMES["model"][name].endswith(f".{type(decoder).__name__}")
    grid, tokens = batch_of(torch.Generator(), images=2, locations=4, words=40)
    assert decoder(grid, tokens).logits.shape[1] == 40
    assert decoder.hidden_dim == decoder.embed_dim == 16
    if name != "lstm":
        assert decoder.attention.query.out_features == 16


def test_a_self_critical_step_learns_from_samples_of_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = parts.decoders(words=40, units=16)["attn_lstm"]
    decoder.words = ["<pad>", "<start>", "<end>", "<unk>", "a", "dog", "in", "the", "man", "two"]
    decoder.words += [f"w{number}" for number in range(30)]
    step = parts.SampledStep(decoder, "fp32", images=6)
    before = decoder.output_words.weight.clone()
    step(batch_of(torch.Generator(), images=4, locations=4)[0])
    assert not torch.equal(decoder.output_words.weight, before)
    monkeypatch.setattr(step.step, "make", lambda batch: ids.append(batch.ids))
    ids: list[list[str]] = []
    step(torch.zeros(4, 4, 512), 2)
    assert ids == [["2", "3", "4", "5"]]
    taken = gpu.self_critical_epoch(torch.device("cpu"), decoder, images=16, locations=4)
    assert taken.name == "a self-critical epoch of 16 images"


def test_private_memory_is_what_a_process_allocates(tmp_path: Path) -> None:
    if not memory.ROLLUP.exists():
        pytest.skip("only Linux says how much memory is private")
    script = "import time; held = bytearray(b'1') * 100_000_000; time.sleep(0.5); "
    script += "del held; time.sleep(0.5)"  # the peak is what counts
    peak, taken = memory.peak_of([sys.executable, "-c", script])
    assert 0.1 < peak < 0.15
    assert taken > 1
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        memory.peak_of([sys.executable, "-c", "1 / 0"])


def test_the_made_up_runs_are_on_a_leaderboard_with_two_seeds_each(tmp_path: Path) -> None:
    waiting.make_runs(tmp_path, 4)
    found = [json.loads((tmp_path / f"{n}" / "results.json").read_text()) for n in range(4)]
    settings = [(run["config"]["model"]["attention_dim"], run["config"]["seed"]) for run in found]
    assert settings == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert waiting.report(1, images=3).unit == "s"


def test_the_plots_have_a_line_for_every_decoder_and_the_prediction_of_one() -> None:
    measured = {"attn_lstm": [0.1, 0.3, 0.4], "lstm": [0.1, 0.1, 0.2]}
    found = {
        name: scale.series(name, (1, 2, 4), measured, [1.0, 2.0, 4.0])
        for name in ("captions", "beam size")
    }
    drawing = scale.plot(found)
    for axes in drawing.axes:
        assert len(axes.lines) == 3
        assert axes.lines[2].get_ydata() == pytest.approx([150, 300, 600])  # that of the middle
    assert {name: max(sizes) for name, sizes in scale.SIZES.items()} == {
        "captions": 10, "vocabulary": 30_000, "locations": 392, "dimensions": 1024, "beam size": 10
    }  # fmt: skip


@pytest.mark.slow
def test_the_whole_way_from_photographs_to_the_report_is_timed_by_its_parts() -> None:
    arguments = ["encoder.weights=random", "model.hidden_dim=16", "model.attention_dim=16"]
    figure = gpu.whole_way(arguments, splits=(6, 2, 2), epochs=1)
    assert figure.name == "from 10 photographs to the report"
    for part in ("features", "training", "score dev", "score test", "start, report and the rest"):
        assert f"{part} " in figure.note


def test_the_tutorials_files_run_with_todays_libraries(tmp_path: Path) -> None:
    (tmp_path / "caption.py").write_text(
        "import skimage.transform\nfrom scipy.misc import imread, imresize\n"
        "def row(top_k_words, vocab_size):\n    return top_k_words / vocab_size\n"
    )
    module = tutorial.module_of(tmp_path / "caption.py")
    assert module.row(torch.tensor([11]), 5).tolist() == [2]
    assert module.imresize(module.imread("photo.jpg"), (256, 256)).shape[-1] == 3
    assert "scipy.misc" not in sys.modules  # where it would hide what is missing there


def test_a_folder_without_the_tutorial_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "tutorial", "--tutorial", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"{tmp_path} is not the tutorial: it needs models.py, caption.py" in ended.stderr


def test_the_tutorials_captions_end_where_the_benchmark_says() -> None:
    layer = tutorial.EndAfter(torch.nn.Linear(2, 5), words=3)
    words = [int(layer(torch.randn(4, 2)).detach().argmax(1)[0]) for _ in range(3)]
    assert words[2] == 2
    assert 2 not in words[:2]
