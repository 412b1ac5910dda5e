"""ONNX graphs, and the program that captions with them, against the model itself."""

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tiny
import torch
from PIL import Image

from captioning.apps.caption import caption_files
from captioning.captioner import Captioner
from captioning.decoding import Greedy
from captioning.support.errors import CaptioningError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

RUNNER = Path(__file__).parents[2] / "examples" / "caption_onnx.py"
WORDS = [f"word{number}" for number in range(30)]

MODELS = {
    "attn_lstm": {"hidden_dim": 12, "embed_dim": 8, "attention_dim": 6},
    "transformer": {"hidden_dim": 12, "heads": 2, "layers": 1, "feed_forward_dim": 10},
}

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Upright, rotated by its EXIF data, transparent, and grey."""
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (5, 5, 25, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "upright.png")
    picture.save(tmp_path / "rotated.jpg", exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "clear.png")
    picture.convert("L").save(tmp_path / "grey.png")
    return sorted(tmp_path.iterdir())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*arguments: object) -> dict[str, str]:
        monkeypatch.setattr(sys, "argv", [str(RUNNER), *map(str, arguments)])
        runpy.run_path(str(RUNNER), run_name="__main__")
        return dict(line.split("\t") for line in capsys.readouterr().out.splitlines())

    return run


@pytest.mark.parametrize(
    ("name", "resize"),
    [("attn_lstm", "crop"), ("transformer", "squash")],
)
def test_the_runner_writes_the_greedy_captions_of_the_model(
    name: str,
    resize: str,
    photographs: list[Path],
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The tests' check of types does not know the symbols that stand for numbers in an export.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    from captioning.pretrained.onnx import save_onnx

    torch.manual_seed(1)
    target = "captioning.models.encoders.torchvision.TorchvisionEncoder"
    encoder = {"_target_": target, "name": "squeezenet1_1", "layer": "features.4",
               "weights": "random", "image_size": 64, "resize": resize}  # fmt: skip
    captioner = Captioner(WORDS, encoder=encoder, model={"_target_": name, **MODELS[name]})
    for parameter in captioner.decoder.parameters():  # captions vary with the image
        torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path / "model"
    captioner.save_pretrained(folder, half=False)
    files = save_onnx(captioner, folder / "onnx")
    assert [path.name for path in files] == ["encoder.onnx", "step.onnx"]
    expected = {
        str(found.path): found.caption
        for batch, _ in caption_files(captioner, photographs, Greedy(), precision="fp32")
        for found in batch
    }
    assert run(folder, *photographs) == expected
    assert len(set(expected.values())) > 1


def test_the_runner_needs_no_torch_and_has_sixty_lines() -> None:
    text = RUNNER.read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}
    assert len(text.splitlines()) <= 63


def test_a_model_that_cannot_be_exported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from captioning.pretrained.onnx import save_onnx

    def export(*_: object, **named: object) -> None:
        raise RuntimeError("data-dependent\nmore lines")

    monkeypatch.setattr(torch.onnx, "export", export)
    model = {"_target_": "attn_lstm", **MODELS["attn_lstm"]}
    captioner = Captioner(WORDS, encoder=tiny.ENCODER, model=model)
    with pytest.raises(CaptioningError, match=r"to ONNX \(RuntimeError: data-dependent\)"):
        save_onnx(captioner, tmp_path)
    assert list(tmp_path.iterdir()) == []
