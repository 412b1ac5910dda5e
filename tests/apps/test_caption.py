"""caption.py as a user runs it, with a tiny untrained model."""

import csv
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from tiny import ODD_FILE_NAMES

from captioning.apps import caption as module
from captioning.captioner import Captioner
from captioning.decoding import Beam, Hypothesis

SCRIPT = Path(__file__).parents[2] / "caption.py"
WORDS = [f"word{number}" for number in range(40)]

SHORT = "decoding.max_length=5"
"""For figures, which have a map for each word, and take longest of all."""


def make_checkpoint(path: Path, model: str) -> Path:
    torch.manual_seed(0)
    captioner = Captioner(
        WORDS,
        encoder={
            "_target_": "captioning.models.encoders.vgg16.VGG16",
            "weights": "random",
            "image_size": 32,  # a grid of 2 x 2
        },
        model={"_target_": model, "hidden_dim": 24, "embed_dim": 16},
    )
    for parameter in captioner.decoder.parameters():  # makes captions vary with the image
        torch.nn.init.normal_(parameter, std=0.4)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ckpt") / "best.ckpt"
    return make_checkpoint(path, "captioning.models.decoders.attn_lstm.AttentionLSTM")


@pytest.fixture(scope="module")
def blind_ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without attention."""
    path = tmp_path_factory.mktemp("ckpt") / "lstm.ckpt"
    return make_checkpoint(path, "captioning.models.decoders.lstm.LSTM")


@pytest.fixture(scope="module")
def by_hand(ckpt: Path) -> Callable[..., Hypothesis]:
    """The caption of one picture, computed independently of caption.py."""
    captioner = Captioner.load_from_checkpoint(ckpt)

    @torch.inference_mode()
    def describe(picture: Image.Image, **options: int) -> Hypothesis:
        pixels = captioner.encoder.preprocessing(picture)
        grid = captioner.encoder(pixels[None]).half()  # as in the feature store
        return captioner(grid, Beam(**options))[0][0]

    return describe


class Ended(NamedTuple):
    """The exit status and the output of the script."""

    status: int
    out: str
    err: str

    @property
    def captions(self) -> dict[str, str]:
        """The lines of stdout."""
        return dict(line.split("\t") for line in self.out.splitlines())


Run = Callable[..., Ended]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ckpt: Path,
) -> Iterator[Run]:
    """Run caption.py in this process and in an empty folder, where it may leave no other files."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    wanted: set[str] = set()

    def run(*overrides: str) -> Ended:
        wanted.update(
            override.partition("=")[2].partition("/")[0]
            for override in overrides
            if override.startswith(("out=", "figures="))
        )
        given = () if any(o.startswith("ckpt=") for o in overrides) else (f"ckpt={ckpt}",)
        argv = ["caption.py", *given, "device=cpu", "precision=fp32", *overrides]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capsys.readouterr())

    yield run
    assert {path.name for path in folder.iterdir()} <= wanted


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A picture of a few large random patches, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def photographs(tmp_path: Path) -> dict[str, Image.Image]:
    """Seven pictures of different sizes, in ``in`` and a folder below it."""
    pictures = {
        f"{tmp_path}/in/{'sub/' * (seed % 2)}{seed // 2}.png": noise(seed, 30 + 9 * seed, 50)
        for seed in range(7)
    }
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for path, picture in pictures.items():
        picture.save(path)
    return pictures


def test_several_views_are_captioned_together(
    run: Run, ckpt: Path, photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    """The grids of a photograph's views are one after another, as Captioner.generate takes them."""
    captioner, views = Captioner.load_from_checkpoint(ckpt), ["original", "flip"]
    ended = run(f"images={tmp_path}/in", f"views=[{','.join(views)}]", "batch_size=3")
    assert ended.status == 0
    for path, picture in photographs.items():
        pixels = captioner.encoder.preprocessing(picture)
        with torch.inference_mode():
            grids = captioner.encoder(torch.stack([pixels, pixels.flip(2)])).half()
        ((best, *_),) = captioner.generate(grids.reshape(1, 8, -1), Beam(), views=views)
        assert ended.captions[path] == captioner.vocabulary.decode(best.tokens)
    assert run(f"images={tmp_path}/in").captions != ended.captions
    refused = run(f"images={tmp_path}/in", "views=[flop]")
    assert refused.status == 1
    assert "views=[flop]: there is no view 'flop'; did you mean flip?" in refused.err


def text(hypothesis: Hypothesis) -> str:
    return " ".join(WORDS[token - 4] for token in hypothesis.tokens)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_photograph_gets_the_caption_that_the_model_gives_it_alone(
    run: Run,
    photographs: dict[str, Image.Image],
    tmp_path: Path,
    by_hand: Callable[..., Hypothesis],
    batch_size: int,
) -> None:
    ended = run(f"images={tmp_path}/in", f"batch_size={batch_size}", "out=a.json")
    assert ended.status == 0, ended.err
    expected = {path: by_hand(photographs[path]) for path in sorted(photographs, key=Path)}
    assert list(ended.captions.items()) == [(p, text(found)) for p, found in expected.items()]
    assert len(set(ended.captions.values())) == 7
    rows = json.loads(Path("a.json").read_text())
    assert [(row["image"], row["caption"]) for row in rows] == list(ended.captions.items())
    log_probs = [found.log_prob for found in expected.values()]
    np.testing.assert_allclose([row["log_prob"] for row in rows], log_probs, rtol=1e-3)


def test_csv_has_a_header_and_decoding_can_be_chosen(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    ended = run(f"images={tmp_path}/in/**/*.png", "out=new/a.csv", "decoding=greedy",
                "decoding.max_length=4")  # fmt: skip
    assert ended.status == 0, ended.err
    with Path("new/a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"]: row["caption"] for row in rows} == ended.captions
    assert set(ended.captions) == set(photographs)
    assert {len(caption.split()) for caption in ended.captions.values()} == {4}
    assert all(float(row["log_prob"]) < 0 for row in rows)


def test_several_captions_of_a_photograph_are_lines_rows_and_figures(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    images = f"images={tmp_path}/in/[01].png"
    best = run(images, SHORT).captions
    for files in (("out=a.json", "figures=f"), ("out=a.csv",)):
        ended = run(images, SHORT, "captions=2", *files)
        assert ended.status == 0, ended.err
        lines = [line.split("\t") for line in ended.out.splitlines()]
        assert [path for path, _ in lines] == [path for path in best for _ in range(2)]
        assert dict(reversed(lines)) == best
        assert len({tuple(line) for line in lines}) == 4
        if files[0] == "out=a.json":
            rows = json.loads(Path("a.json").read_text())
        else:
            with Path("a.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        assert [[row["image"], row["caption"]] for row in rows] == lines
    drawn = {path.name for path in Path("f").iterdir()}
    assert drawn == {"0.png.png", "0.png.2.png", "1.png.png", "1.png.2.png"}


def test_every_kind_of_file_is_captioned_as_what_a_viewer_shows(run: Run, tmp_path: Path) -> None:
    shown = noise(1)
    grey = shown.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated by 90 degrees clockwise
    clear = Image.new("RGBA", shown.size, (0, 0, 0, 0))
    primary = Image.new("RGB", (8, 8), (255, 0, 0))
    files: dict[str, tuple[Image.Image, Image.Image, dict[str, Any]]] = {
        "turned.png": (shown.rotate(90, expand=True), shown, {"exif": exif}),
        "turned.webp": (shown.rotate(90, expand=True), shown, {"exif": exif, "lossless": True}),
        "grey.PNG": (grey, grey.convert("RGB"), {}),
        "wide.tif": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
                     grey.convert("RGB"), {}),
        "clear.png": (clear, Image.new("RGB", shown.size, "white"), {}),
        "cmyk.TIFF": (primary.convert("CMYK"), primary, {}),
        "palette.gif": (shown.quantize(4), shown.quantize(4).convert("RGB"), {}),
        "plain.bmp": (shown, shown, {}),
    }  # fmt: skip
    (tmp_path / "files").mkdir()
    (tmp_path / "shown").mkdir()
    for name, (image, picture, options) in files.items():
        image.save(tmp_path / "files" / name, **options)
        picture.save(tmp_path / "shown" / f"{name}.png")
    said = []
    for folder in ("files", "shown"):
        ended = run(f"images={tmp_path / folder}", "out=a.json", "batch_size=1")
        assert ended.status == 0, ended.err
        rows = json.loads(Path("a.json").read_text())
        said.append([(row["caption"], row["log_prob"]) for row in rows])
    assert len(said[0]) == len(files)
    assert said[0] == said[1]
    # grey.PNG and wide.tif show one picture, plain.bmp and the rotated files another
    assert len(set(said[0])) == len(files) - 3


def test_what_cannot_be_read_is_named_and_the_rest_go_on(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    bad = sorted(photographs)[2:4]
    Path(bad[0]).write_bytes(Path(bad[0]).read_bytes()[:100])
    Path(bad[1]).write_text("not an image")
    ended = run(f"images={tmp_path}/in", "batch_size=2", "out=a.json")
    assert ended.status == 1
    assert ended.captions.keys() == photographs.keys() - set(bad)
    assert [row["image"] for row in json.loads(Path("a.json").read_text())] == list(ended.captions)
    *named, last = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert all(path in line for path, line in zip(bad, named, strict=True))
    assert last == "error: 2 of 7 photographs could not be read."
    assert "Traceback" not in ended.err


def test_pipes_and_devices_in_a_folder_are_named_and_not_read(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    (tmp_path / "in" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    for images in ("in", "in/*"):
        ended = run(f"images={tmp_path}/{images}")
        assert ended.status == 1
        assert ended.captions.keys() == {
            path for path in photographs if images == "in" or "sub" not in path
        }
        for name, reason in (("pipe", "a pipe"), ("zero", "a device"), ("gone", "No such file")):
            (line,) = [line for line in ended.err.splitlines() if f"{name}.jpg" in line]
            assert line.startswith("error: ")
            assert reason in line


def test_a_photograph_of_too_many_pixels_is_one_that_cannot_be_read(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # and the largest has 84 x 50
    ended = run(f"images={tmp_path}/in")
    assert ended.status == 1
    assert ended.captions.keys() == photographs.keys() - {f"{tmp_path}/in/3.png"}
    assert "in/3.png is not a readable image (84 x 50 pixels are too many)" in ended.err
    assert "Warning" not in ended.err


def test_without_a_caption_no_file_is_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")
    Path("a.json").write_text("precious")
    ended = run(f"images={tmp_path}/a.jpg", "out=a.json")
    assert (ended.status, ended.out) == (1, "")
    assert Path("a.json").read_text() == "precious"


def test_several_checkpoints_caption_together(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path, ckpt: Path, blind_ckpt: Path
) -> None:
    images = f"images={tmp_path}/in/*.png"
    alone = [run(images, SHORT, f"ckpt={each}").captions for each in (ckpt, blind_ckpt)]
    ended = run(images, SHORT, f"ckpt=[{ckpt},{blind_ckpt}]", "out=both.csv", "figures=maps")
    assert ended.status == 0, ended.err  # the maps are those of the member that has attention
    assert ended.captions.keys() == alone[0].keys()
    assert ended.captions not in alone
    assert run(images, SHORT, f"ckpt=[{ckpt},{ckpt}]").captions == alone[0]
    assert run(images, "ckpt=[]").err.startswith("error: ckpt=[] is empty")


def test_names_reach_the_output_whole_and_on_one_line(run: Run, tmp_path: Path) -> None:
    names = [*ODD_FILE_NAMES, "tab\tnew\nline\u2028.png", os.fsdecode(b"latin\xe9.png")]
    picture = noise(0)
    for name in names:
        with (tmp_path / name).open("wb") as file:
            picture.save(file, "png")
    one = run(f"images={tmp_path}/{ODD_FILE_NAMES[0]}")
    assert list(one.captions) == [f"{tmp_path}/{ODD_FILE_NAMES[0]}"]
    assert list(run(f"images='{tmp_path}/{ODD_FILE_NAMES[2]}'").captions) == [
        f"{tmp_path}/{ODD_FILE_NAMES[2]}"
    ]

    ended = run(f"images={tmp_path}/*.png", "out=a.json")
    assert ended.status == 0, ended.err
    known = {f"{tmp_path}/{name}" for name in names if name.endswith(".png")}
    escaped = {
        name.replace("\t", "\\t").replace("\n", "\\n").replace("\u2028", "\\u2028")
        .replace("\udce9", "\\udce9")
        for name in known
    }  # fmt: skip
    assert set(ended.captions) == escaped
    assert {row["image"] for row in json.loads(Path("a.json").read_text())} == known
    assert run(f"images={tmp_path}/*.png", "out=a.csv").status == 0
    with Path("a.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == escaped


def test_figures_are_drawn_from_each_photographs_own_attention(
    run: Run,
    photographs: dict[str, Image.Image],
    tmp_path: Path,
    by_hand: Callable[..., Hypothesis],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, tuple[str, np.ndarray]] = {}
    draw = module.attention_figure

    def watched(picture: Image.Image, words: list[str], maps: Any, *, region: Any) -> Any:
        path = next(p for p, i in photographs.items() if i.tobytes() == picture.tobytes())
        drawn[path] = (" ".join(words), maps)
        return draw(picture, words, maps, region=region)

    monkeypatch.setattr(module, "attention_figure", watched)
    ended = run(f"images={tmp_path}/in/**/[01].png", SHORT, "figures=f", "batch_size=3")
    assert ended.status == 0, ended.err
    assert {path: words for path, (words, _) in drawn.items()} == ended.captions
    for path, (_, maps) in drawn.items():
        looked = by_hand(photographs[path], max_length=5).attention
        assert looked is not None
        np.testing.assert_allclose(maps, looked.reshape(-1, 2, 2), atol=1e-3)
    files = {str(path): path.read_bytes() for path in Path("f").rglob("*.png")}
    assert files.keys() == {f"f/{name}.png.png" for name in ("0", "1", "sub/0", "sub/1")}
    assert len(set(files.values())) == 4
    Image.open("f/sub/0.png.png").load()


def test_captions_are_kept_where_a_figure_cannot_be_drawn(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, write_figures = tmp_path / "in" / "2.png", module.write_figures

    def write(*arguments: Any) -> Any:
        gone.unlink(missing_ok=True)  # after it has been captioned
        return write_figures(*arguments)

    monkeypatch.setattr(module, "write_figures", write)
    ended = run(f"images={tmp_path}/in", SHORT, "out=a.json", "figures=f", "batch_size=100")
    assert ended.status == 1
    assert f"error: {gone} cannot be read (No such file" in ended.err
    rows = json.loads(Path("a.json").read_text())
    assert [row["image"] for row in rows] == sorted(photographs, key=Path)
    assert len(list(Path("f").rglob("*.png"))) == 6

    longest = tmp_path / "in" / f"{'a' * 250}.png"  # the name of its figure would be too long
    noise(0).save(longest)
    ended = run(f"images={longest}", SHORT, "out=a.json", "figures=f")
    assert ended.status == 1
    assert "png cannot be written (File name too long): choose a shorter name." in ended.err
    assert [row["image"] for row in json.loads(Path("a.json").read_text())] == [str(longest)]


def test_a_mistake_is_told_before_the_work(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path, blind_ckpt: Path
) -> None:
    folder = tmp_path / "in"
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    images = f"images={folder}"
    mistakes: list[tuple[list[str], list[str]]] = [
        (["images=nowhere/*.jpg"], ["images=nowhere/*.jpg", "no such file"]),
        ([images, "out=a.txt"], ["out=a.txt", ".json", ".csv"]),
        ([images, f"out={tmp_path}/folder.csv"], ["folder.csv", "is a folder"]),
        ([images, f"out={tmp_path}/file/a.json"], ["out=", "file/a.json", "cannot be written"]),
        ([images, f"figures={tmp_path}/file"], ["figures=", "file", "cannot be written"]),
        (
            [images, f"figures={tmp_path}/f", f"ckpt={blind_ckpt}"],
            ["attention", "LSTM", "figures="],
        ),
        ([images, f"ckpt={tmp_path}/no.ckpt"], ["no.ckpt", "no such file"]),
        ([images, f"ckpt={tmp_path}/file"], ["file", "not a checkpoint"]),
        ([images, "batch_size=0"], ["batch_size=0"]),
        ([images, "batch_size=many"], ["batch_size=many", "integer"]),
        ([images, "device=abacus"], ["device=abacus", "choose auto, cpu, cuda or mps."]),
        ([images, "precision=fp8"], ["precision=fp8"]),
        ([images, "decoding.beam_size=0"], ["decoding.beam_size=0"]),
        ([images, "captions=0"], ["captions=0"]),
        ([images, "captions=6"], ["captions=6", "finds 5 at most", "decoding.beam_size=6"]),
        ([images, "captions=2", "decoding=greedy"], ["finds 1 at most"]),
        ([images, "decoding.required=[word99]"], ["decoding.required=[word99]", "vocabulary"]),
        ([images, "decoding.forbidden=[wort1]"], ["did you mean word1"]),
        ([], ["images= is missing", "--help"]),
    ]
    for overrides, parts in mistakes:
        ended = run(*overrides)
        (line,) = ended.err.splitlines()
        assert (ended.status, ended.out) == (1, "")
        assert line.startswith("error: ")
        assert all(part in line for part in parts), line
    assert not (tmp_path / "f").exists()
    assert run(images, f"ckpt={blind_ckpt}").status == 0


def test_ctrl_c_ends_it_quietly(
    run: Run, photographs: dict[str, Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "decode_images", interrupted)
    ended = run(f"images={tmp_path}/in", "out=a.json")
    assert (ended.status, ended.out) == (130, "")
    assert ended.err.splitlines()[-1] == "interrupted"
    assert not Path("a.json").exists()


@pytest.mark.usefixtures("photographs")
def test_a_reader_that_has_seen_enough_ends_it_quietly(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        ended = run(f"images={tmp_path}/in", "batch_size=1")
        stdout.write("what Python flushes at its end")
    assert ended.status == 141  # the status of a program killed by SIGPIPE
    assert all("Captioning" in line for line in ended.err.splitlines())


def test_help_is_quick_and_shows_examples() -> None:
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python caption.py ckpt=" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not {"torch", "matplotlib", "PIL"} & imported
