"""The demo: its responses, the requests that it refuses, and the page in a browser."""

import base64
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from flask.testing import FlaskClient
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.test import TestResponse

from captioning.apps.caption import caption_files
from captioning.apps.demo import MAX_UPLOADS, create_app, main
from captioning.apps.demo_server import MAX_CONNECTIONS, DemoServer
from captioning.captioner import Captioner
from captioning.data.images import FORMATS
from captioning.decoding import Beam, Decoding, Hypothesis
from captioning.ensembles import load_captioner

WORDS = [f"word{number}" for number in range(40)]


def make_captioner(
    model: str = "attn_lstm.AttentionLSTM", resize: str = "squash", seed: int = 0
) -> Captioner:
    """A tiny untrained model with a grid of 2 x 2 locations."""
    torch.manual_seed(seed)
    captioner = Captioner(
        WORDS,
        encoder={
            "_target_": "captioning.models.encoders.vgg16.VGG16",
            "weights": "random",
            "image_size": 32,
            "resize": resize,
        },
        model={
            "_target_": f"captioning.models.decoders.{model}",
            "hidden_dim": 24,
            "embed_dim": 16,
        },
    )
    for parameter in captioner.decoder.parameters():  # makes captions vary with the image
        torch.nn.init.normal_(parameter, std=0.4)
    return captioner.eval()


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return make_captioner()


@pytest.fixture
def client(captioner: Captioner) -> FlaskClient:
    return create_app(captioner, Beam()).test_client()


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A picture of a few large random patches, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def form(data: bytes, name: str = "a.png") -> dict[str, Any]:
    """The body of a request, made without a file."""
    head = f'--X\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--X--\r\n"
    return {"data": body, "headers": {"Content-Type": "multipart/form-data; boundary=X"}}


def post(
    client: FlaskClient, data: bytes, name: str = "a.png", headers: dict[str, str] | None = None
) -> TestResponse:
    request = form(data, name)
    request["headers"] |= headers or {}
    return client.post("/caption", **request)


def captions_of(answer: Any, model: int = 0) -> list[dict[str, Any]]:
    """The captions by one of the models."""
    captions: list[dict[str, Any]] = answer["models"][model]["captions"]
    return captions


def pixels_of(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


@torch.inference_mode()
def by_hand(captioner: Captioner, picture: Image.Image) -> list[Hypothesis]:
    """The caption of one picture, computed independently of the demo."""
    grid = captioner.encoder(captioner.encoder.preprocessing(picture)[None]).half()
    hypotheses: list[list[Hypothesis]] = captioner(grid, Beam())
    return hypotheses[0]


def text(hypothesis: Hypothesis) -> str:
    return " ".join(WORDS[token - 4] for token in hypothesis.tokens)


def test_the_best_caption_is_that_of_caption_py(
    client: FlaskClient, captioner: Captioner, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated by 90 degrees clockwise
    turned = encoded(noise(1, 60, 40), "JPEG", exif=exif, quality=95)
    said = set()
    for number, data in enumerate([encoded(noise(0)), turned, encoded(noise(2).convert("L"))]):
        path = tmp_path / str(number)
        path.write_bytes(data)
        ((captioned,), errors) = next(caption_files(captioner, [path], Beam(), device="cpu"))
        assert not errors
        best = captions_of(post(client, data).json)[0]
        assert (best["text"], best["log_prob"]) == (captioned.caption, captioned.log_prob)
        said.add(best["text"])
    assert len(said) == 3


def test_the_best_captions_are_answered_with_their_attention(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bf16, which some processors use, captions with nearly equal scores may be swapped.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    expected = by_hand(captioner, noise(0))
    assert len(expected) == 5
    three, four = (
        captions_of(post(create_app(captioner, Beam(), **some).test_client(), PICTURE).json)
        for some in ({}, {"captions": 4})
    )
    assert three == four[:3]
    scores = [found["score"] for found in four]
    assert scores == sorted(scores, reverse=True)
    for found, hypothesis in zip(four, expected[:4], strict=True):
        assert found["text"] == " ".join(found["words"]) == text(hypothesis)
        assert found["log_prob"] == pytest.approx(hypothesis.log_prob, rel=1e-3)
        length = min(len(found["words"]) + 1, 20)  # with <end>, unless it was cut off
        assert found["score"] == pytest.approx(hypothesis.log_prob / length**0.8, rel=1e-3)
        looked, shape = hypothesis.attention, found["attention"]
        assert looked is not None
        assert (shape["rows"], shape["columns"], shape["region"]) == (2, 2, [0, 0, 1, 1])
        maps = np.frombuffer(base64.b64decode(shape["maps"]), np.uint8).reshape(-1, 4)
        levels = 255 * looked / looked.amax(1, keepdim=True)
        np.testing.assert_allclose(maps, levels, atol=1)


def test_the_photograph_comes_back_small_and_upright(client: FlaskClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    left_red = Image.new("RGB", (3000, 2000), "blue")
    left_red.paste("red", (0, 0, 1500, 2000))  # this side is at the top after the rotation
    answer = post(client, encoded(left_red, "JPEG", exif=exif)).json
    assert answer is not None
    photo = pixels_of(answer["photo"]["url"])
    assert photo.size == (answer["photo"]["width"], answer["photo"]["height"]) == (683, 1024)
    assert not photo.getexif()
    np.testing.assert_allclose(photo.getpixel((340, 200)), (255, 0, 0), atol=8)
    np.testing.assert_allclose(photo.getpixel((340, 800)), (0, 0, 255), atol=8)


def test_maps_say_which_part_of_the_photograph_a_crop_saw() -> None:
    client = create_app(make_captioner(resize="crop"), Beam()).test_client()
    best = captions_of(post(client, encoded(noise(0, 400, 200))).json)[0]
    # The crop is 7/8 of the shorter side: 175 pixels in the middle of 400 x 200.
    region = [112.5 / 400, 12.5 / 200, 287.5 / 400, 187.5 / 200]
    assert best["attention"]["region"] == pytest.approx(region, abs=1e-3)


def test_a_model_without_attention_has_captions_alone() -> None:
    client = create_app(make_captioner("lstm.LSTM"), Beam(beam_size=2)).test_client()
    captions = captions_of(post(client, encoded(noise(0))).json)
    assert [found["attention"] for found in captions] == [None, None]


def test_a_caption_is_not_repeated(captioner: Captioner) -> None:
    twice = Scripted(captions=(Scripted.captions[0], Scripted.captions[0], Scripted.captions[1]))
    captions = captions_of(post(create_app(captioner, twice).test_client(), PICTURE).json)
    assert [found["text"] for found in captions] == ["word0 word1 word2", "word0 word7"]


@pytest.fixture(scope="module")
def other() -> Captioner:
    """A model with other weights, whose encoder crops photographs."""
    other = make_captioner(resize="crop", seed=1)
    other.run["name"] = "other"
    return other


def test_two_models_are_compared_on_one_photograph(captioner: Captioner, other: Captioner) -> None:
    """Each model's captions and maps are those that it has on its own page."""
    data = encoded(noise(0, 400, 200))
    alone = [post(create_app(each, Beam()).test_client(), data).json for each in (captioner, other)]
    with served(captioner, Beam(), compare=other) as url:
        with urlopen(url, timeout=20) as page:
            text = page.read().decode()
        with urlopen(Request(f"{url}/caption", **form(data)), timeout=20) as answer:
            both = json.load(answer)
    assert "captioner, on top of vgg16, and other, on top of vgg16" in text
    assert re.findall('<figure aria-label="(.*)">', text) == ["captioner", "other"]
    assert [model["name"] for model in both["models"]] == ["captioner", "other"]
    assert [captions_of(both, 0), captions_of(both, 1)] == [*map(captions_of, alone)]
    assert captions_of(both, 0) != captions_of(both, 1)
    regions = [captions_of(both, model)[0]["attention"]["region"] for model in (0, 1)]
    assert regions[0] == [0, 0, 1, 1] != regions[1]


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([{"name": "a", "seed": 0}, {"name": "a", "seed": 1}], ["a (seed=0)", "a (seed=1)"]),
        ([{"name": "a", "seed": 0}, {"name": "b", "seed": 0}], ["a", "b"]),
        ([{"name": "a", "seed": 0}] * 2, ["a (ckpt)", "a (compare)"]),
        ([{"name": "<b>"}, {"name": "<b>"}], ["<b> (ckpt)", "<b> (compare)"]),
    ],
)
def test_the_names_of_two_models_differ(
    captioner: Captioner,
    other: Captioner,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[dict[str, Any]],
    names: list[str],
) -> None:
    for model, run in zip((captioner, other), runs, strict=True):
        monkeypatch.setattr(model, "run", run)
    client = create_app(captioner, Scripted(), compare=other).test_client()
    answer = post(client, PICTURE).json
    assert answer is not None
    assert [model["name"] for model in answer["models"]] == names
    page = client.get("/").text
    assert [unescape(name) for name in re.findall(r'<h2 class="name">(.*)</h2>', page)] == names
    assert "<b>" not in page


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares the given size."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
        for kind, body in chunks
    )


PICTURE = encoded(noise(0))


@pytest.mark.parametrize(
    ("name", "data", "status", "parts"),
    [
        ("notes.jpg", b"not an image", 415, ["notes.jpg", "JPEG", "PNG"]),
        ("icon.png", encoded(noise(0), "ICO"), 415, ["icon.png", "format"]),
        ("empty.png", b"", 415, ["empty.png"]),
        ("cut.png", PICTURE[:-30], 400, ["cut.png", "not a readable image"]),
        ("large.png", bomb(8001, 8001), 413, ["large.png", "64 million pixels"]),
        ("larger.png", bomb(10000, 10000), 413, ["larger.png", "64 million pixels"]),
        ("largest.png", bomb(60000, 60000), 413, ["largest.png", "64 million pixels"]),
        ("heavy.png", PICTURE + bytes(20_000_000), 413, ["20 MB"]),
        ("", PICTURE, 400, ["No photograph"]),
    ],
    ids=lambda value: value or "nameless" if isinstance(value, str) else "",
)
def test_what_is_no_photograph_is_refused_with_one_sentence(
    client: FlaskClient, name: str, data: bytes, status: int, parts: list[str]
) -> None:
    refused(post(client, data, name), status, parts)


def refused(answer: TestResponse, status: int, parts: list[str]) -> None:
    assert answer.status_code == status
    assert answer.is_json
    assert answer.json is not None
    assert answer.json.keys() == {"error"}
    sentence = answer.json["error"]
    assert all(part in sentence for part in parts), sentence
    assert re.fullmatch(r"[^\n]+[^.]\.", sentence), sentence
    assert ". " not in sentence


def test_the_content_says_what_a_file_is(client: FlaskClient) -> None:
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        assert post(client, encoded(noise(0), format), "notes.txt").status_code == 200


def test_other_requests_are_refused_with_one_sentence(
    client: FlaskClient, captioner: Captioner
) -> None:
    refused(client.get("/nowhere"), 404, ["not found"])
    wrong = client.get("/caption")
    refused(wrong, 405, ["not allowed"])
    assert "POST" in wrong.headers["Allow"]
    refused(client.post("/caption"), 400, ["No photograph"])
    refused(client.post("/caption", data={"photo": "text"}), 400, ["No photograph"])
    refused(client.post("/caption", data={"photo": "x" * 20_000_001}), 413, ["20 MB"])

    failing = create_app(captioner, Scripted(captions=())).test_client()
    refused(post(failing, PICTURE), 500, ["internal error"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example:8000"}, 400),
        ({"Host": "127.0.0.1.attacker.example"}, 400),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "https://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),  # through a tunnel
        ({}, 200),  # curl
    ],
)
def test_only_the_page_itself_can_ask(
    client: FlaskClient, headers: dict[str, str], status: int
) -> None:
    answer = post(client, PICTURE, headers={"Host": "127.0.0.1:8000"} | headers)
    assert answer.status_code == status
    if status != 200:
        refused(answer, status, [])
    if status == 400:
        refused(client.get("/", headers=headers), status, ["not trusted"])


def test_every_answer_is_guarded(client: FlaskClient) -> None:
    for answer in (client.get("/"), post(client, PICTURE), post(client, b""), client.get("/no")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    page = client.get("/").text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=[\"']?(?!data:)\w", page)


written: list[object] | None = None


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if written is not None and event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written.append(arguments[0])


def test_nothing_touches_the_disk(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.addaudithook(watch)  # an audit hook cannot be removed
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels))
    assert len(data) > 2_000_000
    monkeypatch.setattr(sys.modules[__name__], "written", [])
    assert post(client, data).status_code == 200
    assert written == []


@dataclass(frozen=True, kw_only=True)
class Scripted(Decoding):
    """Returns the same caption for every photograph; each word attends to one cell of the grid."""

    captions: tuple[tuple[tuple[str, int], ...], ...] = (
        (("word0", 0), ("word1", 1), ("word2", 2)),
        (("word0", 3), ("word7", 2)),
    )

    def generate(
        self, decoder: Any, grid: torch.Tensor, *, attention: bool
    ) -> list[list[Hypothesis]]:
        hypotheses = [
            Hypothesis(
                [4 + WORDS.index(word) for word, _ in caption],
                -1.5 * number,
                -1.0 * number,
                torch.eye(4)[[cell for _, cell in caption]],
            )
            for number, caption in enumerate(self.captions, 1)
        ]
        if not hypotheses:
            raise RuntimeError("a defect")
        return [hypotheses]


@dataclass(frozen=True, kw_only=True)
class Slow(Scripted):
    """Counts how many photographs are captioned at the same time."""

    counted: tuple[list[int], list[int]]

    def generate(self, *arguments: Any, **named: Any) -> list[list[Hypothesis]]:
        under_way, most = self.counted
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.pop()
        return super().generate(*arguments, **named)


def test_one_photograph_is_captioned_at_a_time(captioner: Captioner) -> None:
    counted: tuple[list[int], list[int]] = ([], [])
    app = create_app(captioner, Slow(counted=counted))
    statuses = []

    def ask() -> None:
        statuses.append(post(app.test_client(), PICTURE).status_code)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 5
    assert counted == ([], [1] * 5)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def changed(data: bytes, rng: random.Random) -> bytes:
    """With other bytes in the first hundred, where the sizes and offsets of most formats are."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        found[rng.randrange(4, min(len(found), 100))] = rng.choice((0, 127, 128, 255))
    return bytes(found)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata that is damaged
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_broken_image_is_captioned_or_refused_with_one_sentence(
    client: FlaskClient, format: str
) -> None:
    data, rng = encoded(noise(0), format), random.Random(0)
    for broken in [make(data, rng) for make in (cut, changed) for _ in range(12)]:
        answer = post(client, broken, f"a.{format}")
        if answer.status_code != 200:
            assert answer.status_code in (400, 413, 415)
            refused(answer, answer.status_code, ["a."])


def test_a_jpeg_that_would_take_hours_is_refused(client: FlaskClient) -> None:
    data = encoded(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    start = time.monotonic()
    refused(post(client, data[:-2] + scan * 50_000 + data[-2:]), 400, ["too many scans"])
    assert time.monotonic() - start < 5


def test_a_name_is_shown_short_and_on_one_line(client: FlaskClient) -> None:
    refused(post(client, b"no image", "a\x1b[31m" + "b" * 50_000 + ".png"), 415, ["…bbb", "b.png"])
    answer = post(client, b"no image", "a\x85\x1b[31mb.png").json
    assert answer is not None
    assert answer["error"].startswith("a??[31mb.png is ")


# The server


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def received(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    with suppress(ConnectionError):
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b"reset"


def test_slow_connections_neither_pile_up_nor_stay(captioner: Captioner) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        url = stack.enter_context(served(captioner, Scripted(), header_seconds=1.0))
        clients = [stack.enter_context(connect(url)) for _ in range(3 * MAX_CONNECTIONS)]
        for client in clients[:MAX_CONNECTIONS]:
            client.send(b"GET / HT")
        for client in clients[MAX_CONNECTIONS:]:
            head, _, body = received(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert "try again" in json.loads(body)["error"]
        assert threading.active_count() <= before + 1 + MAX_CONNECTIONS
        start = time.monotonic()
        for step in range(15):  # a byte now and then does not help
            time.sleep(0.1)
            for client in clients[:MAX_CONNECTIONS]:
                with suppress(ConnectionError):
                    client.send(b"TP/1.1\r\nHost: "[step : step + 1])
        assert {received(client) for client in clients[:MAX_CONNECTIONS]} <= {b"", b"reset"}
        assert time.monotonic() - start < 5
        with urlopen(url, timeout=20) as answer:
            assert answer.status == 200


def test_few_uploads_are_held_in_memory_and_not_for_long(captioner: Captioner) -> None:
    size = 19_000_000  # more than the system keeps for a server that does not read
    head = f"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size + 1}\r\n"
    head += "Content-Type: multipart/form-data; boundary=X\r\n\r\n"
    photo = form(bytes(size))["data"][:size]
    whole, answers = [], []

    def send(client: socket.socket) -> None:
        try:
            client.sendall(head.encode() + photo)
            whole.append(client)
            answers.append(received(client))
        except ConnectionError:
            answers.append(b"reset")

    with ExitStack() as stack:
        url = stack.enter_context(served(captioner, Scripted(), body_seconds=4.0))
        clients = [stack.enter_context(connect(url)) for _ in range(3 * MAX_UPLOADS)]
        threads = [threading.Thread(target=send, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(2)
        assert len(whole) == MAX_UPLOADS
        for thread in threads:
            thread.join()
        told = [answer for answer in answers if answer != b"reset"]
        assert len(told) >= MAX_UPLOADS
        for answer in told:
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive" in answer
        with urlopen(Request(f"{url}/caption", **form(PICTURE)), timeout=20) as good:
            assert good.status == 200


# The command


def save(captioner: Captioner, path: Path) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(path)
    return path


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    captioner, other = make_captioner(), make_captioner(seed=1)
    ckpt, second = save(captioner, tmp_path / "a=b, c.ckpt"), save(other, tmp_path / "d.ckpt")
    command = [sys.executable, "-m", "captioning", "demo", f"ckpt={ckpt}", f"compare={second}"]
    command += ["port=0", "beam_size=3", "captions=2", "device=cpu"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as demo:
        try:
            assert demo.stdout is not None
            opened = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+)\n", demo.stdout.readline())
            assert opened, demo.communicate()[1]
            with urlopen(Request(f"{opened[1]}/caption", **form(PICTURE)), timeout=30) as answer:
                found = json.load(answer)
            path = tmp_path / "a.png"
            path.write_bytes(PICTURE)
            beam = Beam(beam_size=3)
            for place, model in enumerate((captioner, other)):
                (captioned, _) = next(caption_files(model, [path], beam, captions=2, device="cpu"))
                expected = [each.caption for each in captioned]
                assert [each["text"] for each in captions_of(found, place)] == expected
            demo.send_signal(signal.SIGINT)
            start = time.monotonic()
            out, err = demo.communicate(timeout=30)
            assert time.monotonic() - start < 5
        finally:
            demo.kill()
    assert (demo.returncode, out) == (-signal.SIGINT, "")  # a shell reports 130
    assert err == f"Loading {ckpt}, {second}\n"
    assert {each.name for each in tmp_path.iterdir()} == {ckpt.name, second.name, "a.png"}


def test_a_list_of_checkpoints_is_an_ensemble_as_for_caption_py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(make_captioner(seed=seed), tmp_path / f"{seed}.ckpt") for seed in (0, 1)]
    served_apps = []

    class Stopped(DemoServer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            served_apps.append(self.app)
            self.server_close()
            raise KeyboardInterrupt

    monkeypatch.setattr("captioning.apps.demo.DemoServer", Stopped)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    both = f"[{paths[0]}, {paths[1]}]"
    assert main([f"ckpt={both}", f"compare={paths[1]}", "port=0", "device=cpu"]) == 130
    (app,) = served_apps
    answer = post(app.test_client(), PICTURE).json
    assert answer is not None
    assert [model["name"] for model in answer["models"]] == ["ensemble of 2", "captioner"]
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    ((captioned,), _) = next(caption_files(load_captioner(paths), [path], Beam(), device="cpu"))
    assert captions_of(answer)[0]["text"] == captioned.caption


def test_a_mistake_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], captioner: Captioner
) -> None:
    (tmp_path / "file").write_text("hello")
    ckpt = f"ckpt={save(captioner, tmp_path / 'best.ckpt')}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mistakes: list[tuple[list[str], list[str]]] = [
            (["ckpt=flickr8k-vgg16-atn"], ["did you mean flickr8k-vgg16-attn?"]),
            ([ckpt, "prot=1"], ["prot=1: no such setting; did you mean port?"]),
            ([ckpt, "colour=1"], ["colour=1", "port", "beam_size", "device"]),
            ([ckpt, "8000"], ["8000", "key=value"]),
            ([ckpt, "port=http"], ["error: port=http", "integer"]),
            ([ckpt, "port=65536"], ["port=65536", "65535"]),
            ([ckpt, f"port={port}"], [f"port={port}", "in use", "0"]),
            ([ckpt, "port=0", "beam_size=0"], ["beam_size=0"]),
            ([ckpt, "beam_size=2", "captions=3"], ["captions=3", "from 1 to 2", "beam_size"]),
            ([ckpt, "captions=0"], ["captions=0", "from 1 to 5"]),
            ([ckpt, "captions=many"], ["captions=many", "integer"]),
            ([ckpt, "port=0", "device=abacus"], ["device=abacus"]),
            ([ckpt, f"compare={tmp_path}/no.ckpt"], ["compare=", "no.ckpt", "no such file"]),
            ([ckpt, f"compare={tmp_path}/file", "port=0"], ["file", "not a checkpoint"]),
            ([f"ckpt=[{tmp_path}/no.ckpt]"], ["no.ckpt", "no such file"]),
            (["ckpt=[]"], ["ckpt=", "at least one"]),
            ([f"ckpt={tmp_path}/no.ckpt"], ["no.ckpt", "no such file"]),
            ([f"ckpt={tmp_path}/file", "port=0"], ["file", "not a checkpoint"]),
        ]
        for arguments, parts in mistakes:
            assert main(arguments) == 1
            out, err = capsys.readouterr()
            line = err.splitlines()[-1]
            assert line.startswith("error: ")
            assert all(part in line for part in parts), line
            assert out == ""
            assert len(err.splitlines()) <= 2  # the line `Loading` may come first


def test_ctrl_c_while_it_loads(
    captioner: Captioner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **settings: object) -> Captioner:
        raise KeyboardInterrupt

    ckpt = save(captioner, tmp_path / "best.ckpt")
    monkeypatch.setattr(Captioner, "load_from_checkpoint", interrupted)
    assert main([f"ckpt={ckpt}", "port=0"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_is_quick_and_tells_every_setting() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "captioning", "demo", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for setting in ("ckpt=", "compare=", "captions=3", "port=8000", "beam_size=5", "device=auto"):
        assert setting in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "flask" in imported
    assert not {"torch", "matplotlib"} & imported


# The page


class Page:
    """The page in a browser, as a visitor sees and operates it."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, url: str, width: int = 1200) -> None:
        reduced = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": reduced})
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.chrome.get(url)

    def one(self, selector: str) -> WebElement:
        (element,) = self.all(selector)
        return element

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.chrome, 10, 0.02).until(lambda _: condition())

    def choose_file(self, path: Path) -> None:
        self.one("input[type=file]").send_keys(str(path))

    def wait_for_caption(self, name: str) -> None:
        self.wait_for(lambda: self.one("[role=status]").text.startswith(f"{name} was captioned"))

    def hover(self, element: WebElement) -> None:
        ActionChains(self.chrome, duration=0).move_to_element(element).perform()

    def dispatch(self, event: str, *names: str) -> None:
        """Dispatch an event with files of those names, as dropping and pasting do."""
        script = """
            const [event, base64, names] = arguments;
            const carried = new DataTransfer();
            const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
            for (const name of names) carried.items.add(new File([bytes], name));
            const options = { bubbles: true, cancelable: true };
            const made = event === "paste"
                ? new ClipboardEvent(event, { ...options, clipboardData: carried })
                : new DragEvent(event, { ...options, dataTransfer: carried });
            document.querySelector("h1").dispatchEvent(made);
        """
        self.chrome.execute_script(script, event, base64.b64encode(PICTURE).decode(), names)

    def looks_at(self) -> tuple[bool, bool] | None:
        """Where attention is on a grey photograph, as (is lower, is right); None if hidden."""
        (canvas,) = self.all("canvas.attention")
        if canvas.value_of_css_property("opacity") != "1":
            return None
        image = Image.open(BytesIO(self.one(".photo").screenshot_as_png)).convert("L")
        light = np.asarray(image, dtype=float)[8:-8, 8:-8]  # without the rounded corners
        down, across = np.nonzero(light >= light.max() - 2)
        middle = light.shape[0] / 2, light.shape[1] / 2
        return bool(down.mean() > middle[0]), bool(across.mean() > middle[1])


@pytest.fixture
def page(chromium: Chrome) -> Iterator[Page]:
    """A browser page. At the end, checks for browser errors and for requests to other computers."""
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    yield Page(chromium)
    # The browser reports a refused photograph as an error; no other error is allowed.
    log = [entry["message"] for entry in chromium.get_log("browser")]
    assert all("/caption - Failed to load resource" in message for message in log), log
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert requests, "the browser does not report its requests"
    assert all(re.match(r"data:|http://127\.0\.0\.1:", url) for url in requests), requests
    chromium.get("about:blank")


@contextmanager
def served(
    captioner: Captioner, decoding: Decoding, compare: Captioner | None = None, **seconds: float
) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = DemoServer(create_app(captioner, decoding, compare=compare), listener, **seconds)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def url(captioner: Captioner) -> Iterator[str]:
    with served(captioner, Scripted()) as url:
        yield url


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.new("RGB", (300, 200), "#808080").save(path)
    return path


browser = pytest.mark.browser


@browser
def test_a_word_and_an_alternative_show_where_they_looked(page: Page, url: str, grey: Path) -> None:
    page.open(url)
    assert not page.one(".described").is_displayed()
    page.choose_file(grey)
    page.wait_for_caption("grey.png")
    assert [word.text for word in page.all(".caption .word")] == ["word0", "word1", "word2"]
    for word, place in zip(page.all(".word"), [(0, 0), (0, 1), (1, 0)], strict=True):
        page.hover(word)
        assert page.looks_at() == place
    page.hover(page.one("h1"))
    assert page.looks_at() is None

    first, second = page.all(".choice")
    assert first.text.split("\n") == ["word0 word1 word2", "−1.00", "log p −1.50"]
    assert second.text.split("\n") == ["word0 word7", "−2.00", "log p −3.00"]
    pressed = [choice.get_attribute("aria-pressed") for choice in (first, second)]
    assert pressed == ["true", "false"]
    second.click()
    pressed = [choice.get_attribute("aria-pressed") for choice in (first, second)]
    assert pressed == ["false", "true"]
    assert [word.text for word in page.all(".caption .word")] == ["word0", "word7"]
    for word, place in zip(page.all(".word"), [(1, 1), (1, 0)], strict=True):
        page.hover(word)
        assert page.looks_at() == place


@browser
def test_dropping_and_pasting(page: Page, url: str) -> None:
    page.open(url)
    page.dispatch("drop", "dropped.png")
    page.wait_for_caption("dropped.png")
    page.dispatch("paste", "pasted.png")
    page.wait_for_caption("pasted.png")
    assert page.one(".photo img").get_attribute("alt") == "pasted.png"
    page.dispatch("drop", "a.png", "b.png")
    assert "one at a time" in page.one("[role=alert]").text
    page.dispatch("drop")  # a picture dragged from another page carries no file
    assert "no file" in page.one("[role=alert]").text
    assert page.chrome.current_url == f"{url}/"


@browser
def test_errors_are_told_and_then_forgotten(
    page: Page, url: str, grey: Path, tmp_path: Path
) -> None:
    (tmp_path / "<b>notes.jpg").write_text("not an image")
    (tmp_path / "heavy.png").write_bytes(bytes(20_000_001))
    page.open(url)
    alert, status = page.one("[role=alert]"), page.one("[role=status]")
    for name, reason in (("<b>notes.jpg", "of no known format"), ("heavy.png", "20 MB")):
        page.choose_file(tmp_path / name)
        page.wait_for(lambda reason=reason: reason in alert.text)
        assert name in alert.text
        assert status.text == ""
        assert page.one("form").get_attribute("aria-busy") is None
        assert not page.one(".described").is_displayed()
    page.choose_file(grey)
    page.wait_for_caption("grey.png")
    assert alert.text == ""


@browser
def test_a_server_that_does_not_answer_is_told(page: Page, url: str, grey: Path) -> None:
    def connected(is_so: bool) -> None:
        page.chrome.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": not is_so, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
        )

    page.open(url)
    connected(False)
    page.choose_file(grey)
    page.wait_for(lambda: "grey.png could not be sent" in page.one("[role=alert]").text)
    connected(True)
    page.choose_file(grey)
    page.wait_for_caption("grey.png")


@browser
def test_by_keyboard_and_while_it_is_busy(page: Page, captioner: Captioner, grey: Path) -> None:
    with served(captioner, Slow(counted=([], []))) as url:
        page.open(url)
        ActionChains(page.chrome).send_keys(Keys.TAB).perform()
        assert page.chrome.switch_to.active_element == page.one("input[type=file]")
        page.choose_file(grey)
        assert page.one("form").get_attribute("aria-busy") == "true"
        assert page.one("[role=status]").text.startswith("Looking at grey.png")
        page.wait_for_caption("grey.png")
        assert page.one("form").get_attribute("aria-busy") is None
        ActionChains(page.chrome).send_keys(Keys.TAB).perform()
        assert page.chrome.switch_to.active_element.text == "word0"
        assert page.looks_at() == (0, 0)
        ActionChains(page.chrome).send_keys(Keys.ARROW_RIGHT).perform()
        assert page.looks_at() == (0, 1)
        for key, word in ((Keys.END, "word2"), (Keys.ARROW_RIGHT, "word0"), (Keys.HOME, "word0")):
            ActionChains(page.chrome).send_keys(key).perform()
            assert page.chrome.switch_to.active_element.text == word
        ActionChains(page.chrome).send_keys(Keys.TAB, Keys.TAB, Keys.ENTER).perform()
        assert [word.text for word in page.all(".word")] == ["word0", "word7"]
        back = ActionChains(page.chrome).key_down(Keys.SHIFT).send_keys(Keys.TAB, Keys.TAB)
        back.key_up(Keys.SHIFT).perform()
        assert page.chrome.switch_to.active_element.text == "word0"
        assert page.looks_at() == (1, 1)


@browser
def test_what_a_screen_reader_says(page: Page, url: str, grey: Path) -> None:
    page.open(url)
    page.choose_file(grey)
    page.wait_for_caption("grey.png")
    assert page.one("[role=status] .spoken").get_attribute("textContent") == " word0 word1 word2."
    said = [word.get_attribute("aria-description") for word in page.all(".word")]
    assert said == [
        f"looked most at the {at}" for at in ("upper left", "upper right", "lower left")
    ]


@browser
@pytest.mark.parametrize(("shares", "explained"), [((1, 1), False), ((0.25, 1), True)])
def test_how_much_a_word_looked_is_explained(
    page: Page,
    captioner: Captioner,
    grey: Path,
    monkeypatch: pytest.MonkeyPatch,
    shares: tuple[float, float],
    explained: bool,
) -> None:
    def partly(decoding: Scripted, *arguments: Any, **named: Any) -> list[list[Hypothesis]]:
        words = torch.eye(4)[:2] * torch.tensor(shares)[:, None]
        return [[Hypothesis([4, 5], -1.5, -1.0, words)]]

    monkeypatch.setattr(Scripted, "generate", partly)
    with served(captioner, Scripted()) as url:
        page.open(url)
        page.choose_file(grey)
        page.wait_for_caption("grey.png")
        assert page.one(".partial").is_displayed() == explained
        looked = [word.get_attribute("data-looked") for word in page.all(".word")]
        assert looked == (["25", "100"] if explained else [None, None])
        assert not page.one(".alternatives").is_displayed()
        assert not page.one(".explained").is_displayed()


@browser
@pytest.mark.parametrize("width", [1200, 360])
def test_two_models_side_by_side(
    page: Page, captioner: Captioner, other: Captioner, grey: Path, width: int
) -> None:
    with served(captioner, Scripted(), compare=other) as url:
        page.open(url, width)
        page.choose_file(grey)
        page.wait_for_caption("grey.png")
        left, right = page.all("figure")
        for figure, name in ((left, "captioner"), (right, "other")):
            assert figure.find_element(By.CSS_SELECTOR, "h2").text == name
            assert figure.find_element(By.CSS_SELECTOR, ".caption").text == "word0 word1 word2"
        if width == 360:  # one below the other
            assert left.rect["x"] == right.rect["x"]
            assert page.chrome.execute_script("return document.documentElement.scrollWidth") == 360
        else:
            assert left.rect["y"] == right.rect["y"]
        spoken = page.one("[role=status] .spoken").get_attribute("textContent")
        assert spoken == " captioner: word0 word1 word2. other: word0 word1 word2."

        right.find_elements(By.CSS_SELECTOR, ".choice")[1].click()
        texts = [figure.find_element(By.CSS_SELECTOR, ".caption").text for figure in (left, right)]
        assert texts == ["word0 word1 word2", "word0 word7"]
        page.hover(right.find_element(By.CSS_SELECTOR, ".word"))
        shown = [canvas.value_of_css_property("opacity") for canvas in page.all("canvas.attention")]
        assert shown == ["0", "1"]


@browser
def test_a_phone_shows_all_of_it(page: Page, url: str, tmp_path: Path) -> None:
    name = f"{'long' * 40}.png"
    Image.new("RGB", (1200, 300)).save(tmp_path / name)
    page.open(url, 360)
    page.choose_file(tmp_path / name)
    page.wait_for_caption(name)
    assert page.chrome.execute_script("return document.documentElement.scrollWidth") == 360
    assert page.one(".photo").rect["width"] == page.one(".photo canvas").rect["width"] == 328


@browser
def test_without_attention_there_are_captions_to_read(page: Page, grey: Path) -> None:
    with served(make_captioner("lstm.LSTM"), Beam(beam_size=2)) as url:
        page.open(url)
        page.choose_file(grey)
        page.wait_for_caption("grey.png")
        assert page.one(".caption").text == page.all(".choice")[0].text.split("\n")[0]
        assert not page.all(".caption button, button.choice, canvas")
        assert not page.one(".hint").is_displayed()
