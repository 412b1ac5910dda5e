"""The pages, as a browser shows them: opened from disk, in a real Chromium without a network."""

import base64
import csv
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from captioning.apps.leaderboard import main
from captioning.metrics.registry import STANDARD_SCORES
from captioning.reporting import report
from captioning.reporting.gallery import GalleryImage, read_report_data
from captioning.reporting.measures import Objects
from captioning.reporting.report import write_report
from captioning.reporting.results import (
    Data,
    Decoding,
    Encoder,
    Model,
    Results,
    Vocabulary,
    write_results,
)
from captioning.support.errors import CaptioningError

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "<!-- <script> \u2028 \u2029 &lt;b&gt; {{ 7 * 7 }}",
]


def write_run(
    folder: Path,
    name: str = "attn_lstm",
    scores: Mapping[str, Mapping[str, float]] | None = None,
    **fields: object,
) -> Path:
    scores = scores or {"test": dict.fromkeys(STANDARD_SCORES, 0.25)}
    defaults: dict[str, object] = {
        "name": name,
        "created": datetime(2026, 11, 23, 7, 35, tzinfo=UTC),
        "command": "python train.py",
        "config": {"model": {"dropout": 0.5}},
        "data": Data(name="flickr8k", fingerprint="abcdef", images={"test": 4}),
        "vocabulary": Vocabulary(size=2540, fingerprint="v"),
        "encoder": Encoder(name="vgg16", fingerprint="e", weights_source="random"),
        "model": Model(name="attn_lstm", trainable=7_591_916),
        "versions": {"torch": "2.15.0"},
        "free_running": True,
        "commit": None,
        "seconds": {"training": 1546.1},
        "scores": {split: dict(row) for split, row in scores.items()},
        "decoding": Decoding(name="beam"),
    }
    write_results(folder / "results.json", Results.model_validate(defaults | fields))
    return folder


def photograph(path: Path, size: tuple[int, int] = (300, 200), colour: str = "#808080") -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def one_image(
    folder: Path,
    id: str = "a.png",
    caption: str = "a dog runs",
    *,
    references: Sequence[str] = ("A dog .",),
    scores: Mapping[str, float] | None = None,
    attention: np.ndarray | None = None,
    size: tuple[int, int] = (300, 200),
) -> GalleryImage:
    path = photograph(folder / f"{abs(hash(id))}.png", size)
    return GalleryImage(id, path, references, caption, scores or {"CIDEr": 1.0}, attention)


def looks_at(*places: tuple[int, int], rows: int = 3, columns: int = 5) -> np.ndarray:
    """A map a word, all of it at one place (row, column)."""
    maps = np.zeros((len(places), rows, columns), np.float32)
    for word, (row, column) in enumerate(places):
        maps[word, row, column] = 1
    return maps


class Page:
    """What a visitor sees and does."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, path: Path, width: int = 1200, *, phone: bool = False, dark: bool = False):
        # Before loading, so that no page is laid out twice. Still pictures need no waiting for.
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",
        }
        self.chrome.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": name, "value": value} for name, value in features.items()]},
        )
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": phone},
        )
        self.chrome.get(path.resolve().as_uri())
        self.wait_for(self.filled)
        return self

    def filled(self) -> bool:
        """Whether every card in the window has its content, which comes a moment later."""
        return self.run(
            "return [...document.querySelectorAll('.card')].every(card => card.hidden ||"
            "card.firstChild || card.getBoundingClientRect().top > innerHeight)"
        )

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        (element,) = self.all(selector)
        return element

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def wait_for(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.chrome, 10, 0.02).until(lambda _: condition())

    def run(self, script: str, *arguments: object):
        return self.chrome.execute_script(script, *arguments)

    def hover(self, element: WebElement) -> None:
        ActionChains(self.chrome, duration=0).move_to_element(element).perform()

    def press(self, *keys: str) -> None:
        ActionChains(self.chrome).send_keys(*keys).perform()

    def tap(self, element: WebElement) -> None:
        finger = ActionBuilder(self.chrome, mouse=PointerInput("touch", "finger"), duration=0)
        finger.pointer_action.move_to(element).pointer_down().pointer_up()
        finger.perform()

    def attention_shown(self) -> bool:
        return self.run(
            "return [...document.querySelectorAll('canvas.attention')]"
            ".some(canvas => getComputedStyle(canvas).opacity === '1')"
        )

    def brightest(self) -> tuple[float, float]:
        """Where the only grey photograph is brightest on the screen: shares down and across."""
        assert self.attention_shown()
        image = Image.open(BytesIO(self.one(".photo").screenshot_as_png)).convert("L")
        pixels = np.asarray(image, dtype=float)
        margin = 8  # beyond the round corners, where the card shows
        inside = pixels[margin:-margin, margin:-margin]
        down, across = np.nonzero(inside >= inside.max() - 2)
        return (down.mean() + margin) / image.height, (across.mean() + margin) / image.width

    def widest(self) -> int:
        """Pixels that the page takes up from side to side."""
        return self.run("return document.documentElement.scrollWidth")

    def choose(self, name: str, label: str) -> None:
        Select(self.one(f".tools [name={name}]")).select_by_visible_text(label)

    def files(self) -> list[str]:
        """The images in the order in which they are shown."""
        return [text for text in self.texts(".card .file") if text]


@pytest.fixture
def page(chromium: Chrome) -> Iterator[Page]:
    """A visit; in the end, nothing may have gone wrong in the browser or asked for a network."""
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    yield Page(chromium)
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    requests = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert requests, "the browser does not report its requests"
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data"}
    chromium.get("about:blank")


browser = pytest.mark.browser


@browser
def test_a_word_lights_up_the_place_it_looked_at(tmp_path: Path, page: Page) -> None:
    places = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
    image = one_image(tmp_path, caption="a dog runs very fast", attention=looks_at(*places))
    page.open(write_report(write_run(tmp_path), "test", [image]))
    words = page.all(".caption .word")
    assert [word.text for word in words] == ["a", "dog", "runs", "very", "fast"]
    assert not page.attention_shown()
    for word, (row, column) in zip(words, places, strict=True):
        page.hover(word)
        down, across = page.brightest()
        # The centre of the cell; in a corner, the light goes on to the edge.
        assert abs(down - (row + 0.5) / 3) < 0.17
        assert abs(across - (column + 0.5) / 5) < 0.1
    page.hover(page.one("h1"))
    assert not page.attention_shown()


@browser
def test_attention_by_keyboard(tmp_path: Path, page: Page) -> None:
    image = one_image(tmp_path, caption="a dog", attention=looks_at((0, 0), (2, 4)))
    page.open(write_report(write_run(tmp_path), "test", [image, image, image]))
    page.run("document.querySelector('[name=metric]').focus()")
    page.press(Keys.TAB)  # the direction is disabled in the original order
    assert page.chrome.switch_to.active_element.text == "a"
    assert page.attention_shown()
    page.press(Keys.ARROW_RIGHT)
    assert page.chrome.switch_to.active_element.text == "dog"
    assert page.attention_shown()
    page.press(Keys.ESCAPE)
    assert not page.attention_shown()
    # A caption is one stop: the next one is the next image's, and so is the one before.
    cards = page.all(".card")
    focused = "return arguments[0].contains(document.activeElement)"
    page.run("arguments[0].querySelector('.word').focus()", cards[0])
    page.press(Keys.TAB)
    assert page.run(focused, cards[1])
    page.run("arguments[0].querySelector('.word').focus()", cards[2])
    ActionChains(page.chrome).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert page.run(focused, cards[1])
    assert page.chrome.switch_to.active_element.text == "a"


@browser
def test_attention_by_touch(tmp_path: Path, page: Page) -> None:
    image = one_image(tmp_path, caption="a dog", attention=looks_at((0, 0), (2, 4)))
    page.open(write_report(write_run(tmp_path), "test", [image]), 360, phone=True)
    first, second = page.all(".word")
    page.tap(first)
    assert page.brightest()[1] < 0.3
    page.tap(second)
    assert page.brightest()[1] > 0.7
    page.tap(second)
    assert not page.attention_shown()
    page.tap(first)
    page.tap(page.one(".photo img"))
    assert not page.attention_shown()


@browser
def test_maps_of_a_cropped_photograph_lie_on_what_the_encoder_saw(
    tmp_path: Path, page: Page
) -> None:
    encoder = Encoder(name="vgg16", fingerprint="e", weights_source="random", resize="crop")
    folder = write_run(tmp_path, encoder=encoder)
    maps = looks_at((1, 0), (1, 4), rows=3, columns=5)
    image = one_image(tmp_path, caption="left right", attention=maps, size=(400, 200))
    page.open(write_report(folder, "test", [image]))
    # The crop is 7/8 of the shorter side: 175 of 400 pixels in the middle, 112.5 to 287.5.
    for word, across in zip(page.all(".word"), (112.5 + 17.5, 287.5 - 17.5), strict=True):
        page.hover(word)
        assert abs(page.brightest()[1] - across / 400) < 0.04


@browser
def test_sorting_by_best_and_worst(tmp_path: Path, page: Page) -> None:
    scores = {
        "one": {"CIDEr": 0.5, "BLEU-4": 0.3},
        "two": {"BLEU-4": 0.4},
        "three": {"CIDEr": 2.0, "BLEU-4": 0.2},
        "four": {"CIDEr": 1.0, "BLEU-4": 0.1},
    }
    images = [one_image(tmp_path, id, scores=row) for id, row in scores.items()]
    page.open(write_report(write_run(tmp_path), "test", images))
    assert page.files() == ["one", "two", "three", "four"]
    page.choose("metric", "CIDEr")
    page.wait_for(lambda: page.files() == ["three", "four", "one", "two"])
    page.choose("direction", "worst first")
    page.wait_for(lambda: page.files() == ["one", "four", "three", "two"])
    assert page.texts(".marks .chosen") == ["CIDEr 50.0", "CIDEr 100.0", "CIDEr 200.0"]
    page.choose("metric", "BLEU-4")
    page.wait_for(lambda: page.files() == ["four", "three", "one", "two"])
    page.choose("metric", "original order")
    page.wait_for(lambda: page.files() == ["one", "two", "three", "four"])


@browser
def test_searching_captions_and_references(tmp_path: Path, page: Page) -> None:
    images = [
        one_image(tmp_path, "one", "a dog runs", references=["A puppy ."]),
        one_image(tmp_path, "two", "a cat sits", references=["Nothing like a Dog ."]),
        one_image(tmp_path, "three", "a bird", references=["A (rare) bird ."]),
    ]
    page.open(write_report(write_run(tmp_path), "test", images))
    box, count = page.one("[name=search]"), page.one(".tools output")
    assert count.text == "3 images"
    for sought, found in (("dog", ["one", "two"]), ("A DOG R", ["one"]), ("(rare", ["three"])):
        box.send_keys(sought)
        assert page.files() == found
        assert count.text == f"{len(found)} of 3 images"
        box.send_keys(Keys.BACKSPACE * len(sought))
        assert page.files() == ["one", "two", "three"]
    box.send_keys("zebra")
    assert page.files() == []
    assert count.text == "0 of 3 images"


@browser
@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_of_data_are_shown_and_never_run(hostile: str, tmp_path: Path, page: Page) -> None:
    run = write_run(
        tmp_path / "run",
        hostile,
        command=hostile,
        config={hostile: hostile},
        data=Data(name=hostile, fingerprint=hostile, images={"test": 4}),
        versions={hostile: hostile},
    )
    image = one_image(
        tmp_path,
        hostile,
        hostile,
        references=[hostile],
        attention=looks_at(*[(0, 0)] * len(hostile.split())),
    )
    missing = GalleryImage(hostile, tmp_path / "missing", [hostile], hostile, {hostile: 1.0}, None)
    path = write_report(run, "test", [image, missing], progress=False)
    seen = " ".join(hostile.split())  # as any browser shows it

    page.open(path)
    shown = [page.one("h1").text, *page.texts(".caption"), *page.texts(".references li")]
    assert {" ".join(text.split()) for text in shown} == {seen}
    assert page.run("return window.hacked") is None
    assert page.run("return document.querySelectorAll('main img').length") == 1
    assert read_report_data(path)["images"][0]["references"] == [hostile]

    assert main([str(tmp_path)]) == 0
    page.open(tmp_path / "leaderboard.html")
    assert {" ".join(text.split()) for text in page.texts(".caption")} == {seen}
    assert " ".join(page.one("tbody th").text.split()) == seen
    assert page.run("return window.hacked") is None


@browser
def test_the_policy_forbids_connections(tmp_path: Path, chromium: Chrome) -> None:
    chromium.get(write_report(write_run(tmp_path), "test", []).as_uri())
    asked = "return fetch('data:,anything').then(() => 'answered', () => 'refused')"
    assert chromium.execute_script(asked) == "refused"
    chromium.get("about:blank")
    assert chromium.execute_script(asked) == "answered"


@browser
def test_a_phone_needs_no_sideways_scrolling(tmp_path: Path, page: Page) -> None:
    for name in ("a", "b"):
        scores = {split: dict.fromkeys(STANDARD_SCORES, 0.5) for split in ("dev", "test")}
        intervals = {
            split: dict.fromkeys(STANDARD_SCORES, (0.4561, 0.5432)) for split in ("dev", "test")
        }
        folder = write_run(
            tmp_path / name,
            name * 80,
            scores,
            intervals=intervals,
            command="python train.py data.root=" + "x" * 300,
        )
        write_metrics(folder)
        image = one_image(
            tmp_path, "i" * 100, "w" * 90, references=["r" * 200], attention=looks_at((0, 0))
        )
        page.open(write_report(folder, "test", [image]), 360, phone=True)
        assert page.widest() == 360
        page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.widest() == 360
    assert main([str(tmp_path)]) == 0
    page.open(tmp_path / "leaderboard.html", 360, phone=True)
    assert page.widest() == 360


@browser
def test_dark_mode(tmp_path: Path, page: Page) -> None:
    path = write_report(write_run(tmp_path), "test", [one_image(tmp_path)])

    def lightness(selector: str, colour: str) -> float:
        style = f"return getComputedStyle(document.querySelector('{selector}')).{colour}"
        red, green, blue = page.run(f"{style}.match(/[0-9.]+/g).slice(0, 3).map(Number)")
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255

    page.open(path, dark=True)
    assert lightness("body", "backgroundColor") < 0.15
    assert lightness(".card", "backgroundColor") < 0.2
    for text in ("body", ".references", ".marks", "thead th", ".tools label"):
        assert lightness(text, "color") > 0.55
    page.open(path)
    assert lightness("body", "backgroundColor") > 0.9
    for text in ("body", ".references", ".marks", "thead th", ".tools label"):
        assert lightness(text, "color") < 0.45


@browser
def test_a_thousand_images_stay_small_and_are_filled_as_they_are_reached(
    tmp_path: Path, page: Page
) -> None:
    generator = np.random.default_rng(0)
    paths = []
    for number in range(10):
        # As much detail as photographs of this size have: about 10 KB of WebP.
        coarse = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{number}.bmp")
        paths.append(tmp_path / f"{number}.bmp")
    caption = "a man in a blue shirt is standing on the green grass"
    images = [
        GalleryImage(
            f"{number}.jpg",
            paths[number % 10],
            [f"Somebody number {number} stands on the grass in a blue shirt ."] * 5,
            caption,
            dict.fromkeys(STANDARD_SCORES, float(generator.random())),
            generator.random((12, 14, 14), np.float32),
        )
        for number in range(1000)
    ]
    path = write_report(write_run(tmp_path), "test", images, progress=False)
    size = path.stat().st_size
    assert 10e6 < size < 25e6

    page.open(path)
    assert len(page.all(".card")) == 1000
    assert 0 < len(page.all(".card img")) < 40
    page.run("document.querySelectorAll('.card')[999].scrollIntoView()")
    page.wait_for(lambda: page.texts(".card:last-child .file") == ["999.jpg"])
    assert len(page.all(".card img")) < 100


@browser
def test_a_photograph_that_cannot_be_read(
    tmp_path: Path, page: Page, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff no photograph")
    image = GalleryImage("bad.jpg", bad, ["A dog ."], "a dog", {}, looks_at((0, 0), (0, 0)))
    with caplog.at_level(logging.WARNING):
        path = write_report(write_run(tmp_path), "test", [image, one_image(tmp_path)])
    assert "bad.jpg" in caplog.text
    page.open(path)
    assert page.one(".photo.missing").text == "bad.jpg could not be read"
    assert page.texts(".caption") == ["a dog", "a dog runs"]


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (np.ones((3, 2, 2)), "a.png: the caption has 2 words, but its attention has 3 maps"),
        (np.full((2, 2, 2), np.nan), "a.png: attention weights must be finite"),
        (np.full((2, 2, 2), -1.0), "a.png: attention weights must be finite"),
    ],
)
def test_attention_that_is_not_the_captions(
    attention: np.ndarray, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CaptioningError, match=reason):
        one_image(tmp_path, caption="a dog", attention=attention)


def test_each_map_is_kept_up_to_its_own_peak(tmp_path: Path) -> None:
    attention = np.array(
        [[[0.1, 0.2], [0.0, 0.05]], [[0.0, 0.4], [0.8, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    )
    image = one_image(tmp_path, caption="a dog runs", attention=attention)
    data = read_report_data(write_report(write_run(tmp_path), "test", [image]))
    kept = data["images"][0]["captions"][0]["attention"]
    assert kept is not None
    assert list(base64.b64decode(kept["maps"])) == [128, 255, 0, 64, 0, 128, 255, 0, 0, 0, 0, 0]


def part_maps(*shares: float) -> np.ndarray:
    """Maps of which each sums to the given share."""
    return looks_at(*[(1, 2)] * len(shares)) * np.array(shares, np.float32)[:, None, None]


@browser
def test_words_say_how_much_they_looked_at_the_image_if_that_differs(
    tmp_path: Path, page: Page
) -> None:
    image = one_image(tmp_path, caption="a dog runs", attention=part_maps(0.625, 1.0, 0.004))
    page.open(write_report(write_run(tmp_path), "test", [image]))
    words = page.all(".caption .word")
    shown = "return getComputedStyle(arguments[0], '::after').content"
    assert [page.run(shown, word) for word in words] == ['"63"', '"100"', '"0"']
    assert words[0].get_attribute("title") == "63 % of its attention is on the image"
    assert page.run("return arguments[0].textContent", page.one(".caption")) == "a dog runs"
    assert "how much the model looked at the image at all" in page.one(".gallery .note").text
    page.hover(words[0])
    assert page.attention_shown()


def test_words_that_look_at_nothing_else_have_no_numbers(tmp_path: Path) -> None:
    """The sum of weights in single precision is not exactly 1."""
    plain = one_image(tmp_path, caption="a dog", attention=part_maps(1.0, 0.9999))
    path = write_report(write_run(tmp_path), "test", [plain])
    kept = read_report_data(path)["images"][0]["captions"][0]["attention"]
    assert kept is not None
    assert kept.keys() == {"maps", "rows", "columns", "region"}
    assert "how much the model looked" not in path.read_text()
    partial = one_image(tmp_path, caption="a dog", attention=part_maps(1.0, 0.25))
    kept = read_report_data(write_report(tmp_path, "test", [partial]))["images"][0]["captions"][0][
        "attention"
    ]
    assert kept is not None
    assert kept["looked"] == [1.0, 0.25]


def test_of_too_many_images_the_best_the_worst_and_some_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_REPORT_IMAGES", 3)
    scores = [1.0, 5.0, 2.0, 4.0, 3.0]
    images = [
        one_image(tmp_path, str(score), scores={"CIDEr": score}, size=(8, 8)) for score in scores
    ]
    path = write_report(write_run(tmp_path), "test", images)
    shown = [image["id"] for image in read_report_data(path)["images"]]
    assert shown == ["1.0", "5.0", "3.0"]
    assert "3 of the 5 images of the test split" in path.read_text()


def write_metrics(folder: Path) -> None:
    """As Lightning's CSVLogger writes them: mostly empty cells, epochs from 0."""
    rows = [
        {"epoch": 0, "train/loss": 5.0},
        {"epoch": 0, "train/loss": 4.0},
        {"epoch": 0, "dev/CIDEr": 0.2, "dev/BLEU-4": 0.1},
        {"epoch": 1, "train/loss": 3.5},
        {"epoch": 1, "dev/CIDEr": 0.4, "dev/BLEU-4": 0.12},
        {"epoch": 2, "train/loss": "nan"},
        {"epoch": 2, "dev/CIDEr": 0.3, "dev/BLEU-4": 0.13},
        {"final/test/CIDEr": 0.9},
    ]
    (folder / "logs").mkdir(parents=True)
    with (folder / "logs" / "metrics.csv").open("w", newline="") as file:
        fields = ["dev/BLEU-4", "dev/CIDEr", "epoch", "final/test/CIDEr", "train/loss"]
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


@browser
def test_learning_curves(tmp_path: Path, page: Page) -> None:
    folder = write_run(tmp_path)
    write_metrics(folder)
    page.open(write_report(folder, "test", []))
    titles = [
        element.get_attribute("textContent") for element in page.all(".chart circle.reach title")
    ]
    assert [title for title in titles if title.startswith("loss")] == [
        "loss, epoch 1: 4.50",
        "loss, epoch 2: 3.50",
    ]
    assert [title for title in titles if title.startswith("CIDEr")] == [
        "CIDEr, epoch 1: 20.0",
        "CIDEr, epoch 2: 40.0",
        "CIDEr, epoch 3: 30.0",
    ]
    # A higher score is drawn higher up, and epoch 2 of 3 in the middle, under the mark.
    points = page.run(
        "return [...document.querySelectorAll('.chart:last-child .line-0 .dot')]"
        ".map(dot => [dot.cx.baseVal.value, dot.cy.baseVal.value])"
    )
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.2)
    assert y1 > y2
    assert (
        page.run("return document.querySelector('.chart:last-child .marked').x1.baseVal.value")
        == x2
    )


@browser
def test_scores_of_every_split_with_intervals_and_objects(tmp_path: Path, page: Page) -> None:
    folder = write_run(
        tmp_path,
        "a run",
        {"dev": {"CIDEr": 0.5233}, "test": dict.fromkeys(STANDARD_SCORES, 0.2) | {"CIDEr": 0.5742}},
        intervals={"test": {"CIDEr": (0.5494, 0.6011)}},
        objects={
            "test": Objects(
                captions=4, right=0.93, complete=0.81, words=9,
                attention_inside=0.44, peak_inside=0.72, box_share=0.115,
            )
        },
    )  # fmt: skip
    page.open(write_report(folder, "test", []))
    captions, objects = (
        [row.text.split() for row in table.find_elements(By.CSS_SELECTOR, "tr")]
        for table in page.all("table")
    )
    assert captions[0] == ["times", "100", "test", "dev"]
    assert captions[-1] == ["CIDEr", "57.4", "54.9–60.1", "52.3"]
    assert captions[1] == ["BLEU-1", "20.0", "-"]
    assert [row[-1] for row in objects] == ["test", "93.0", "81.0", "72.0", "44.0", "11.5"]
    assert "model.dropout=0.5" in page.all("details pre")[0].get_attribute("textContent")


@browser
@pytest.mark.parametrize("width", [360, 900, 1200])
def test_names_of_measures_stay_on_one_line(tmp_path: Path, page: Page, width: int) -> None:
    scores = {
        split: dict.fromkeys(STANDARD_SCORES, 0.9) | {"CIDEr": 2.8} for split in ("dev", "test")
    }
    wide = dict.fromkeys(STANDARD_SCORES, (0.81, 0.99)) | {"CIDEr": (2.658, 2.983)}
    folder = write_run(tmp_path, scores=scores, intervals={"dev": wide, "test": wide})
    write_metrics(folder)
    page.open(write_report(folder, "test", []), width, phone=width == 360)
    lines = """
        return [...document.querySelectorAll('table th')].map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return new Set([...range.getClientRects()].map(({ top }) => top)).size;
        });
    """
    assert set(page.run(lines)) == {1}
    assert page.widest() == width


def test_a_page_that_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(CaptioningError, match=r"report\.html: not a report .*No such file"):
        read_report_data(path)
    path.write_text("<p>hello</p>")
    with pytest.raises(CaptioningError, match=r"report\.html: not a report that this version"):
        read_report_data(path)


def three_runs(folder: Path) -> None:
    """Best first a, b, c; b has no BLEU-4, only a and b have a report, and only a objects."""
    objects = Objects(
        captions=4, right=0.93, complete=0.81, words=9,
        attention_inside=0.44, peak_inside=0.72, box_share=0.115,
    )  # fmt: skip
    a = write_run(
        folder / "a run", "a", {"test": {"CIDEr": 0.9, "BLEU-4": 0.2}}, objects={"test": objects}
    )
    b = write_run(folder / "b:#?", "b", {"test": {"CIDEr": 0.6}})
    write_run(folder / "c", "c", {"test": {"CIDEr": 0.5, "BLEU-4": 0.3}})
    write_metrics(a)
    write_metrics(b)
    scores = {"near": (1.0, 1.1), "far": (0.1, 2.0), "middle": (1.0, 0.5)}
    for run, place in ((a, 0), (b, 1)):
        images = [
            one_image(
                folder, id, f"{run.name[0]} says {id}", scores={"CIDEr": score[place]},
                attention=looks_at((1, 0), (1, 2), (1, 4)) if run is a else None,
            )
            for id, score in scores.items()
        ]  # fmt: skip
        write_report(run, "test", images)


@browser
def test_leaderboard_is_sorted_by_a_click_and_leads_to_the_reports(
    tmp_path: Path, page: Page
) -> None:
    three_runs(tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page.open(tmp_path / "out" / "leaderboard.html")
    columns = {button.text: button for button in page.all("thead button")}
    assert page.texts("tbody th") == ["a", "b", "c"]
    for clicks in (["c", "a", "b"], ["a", "c", "b"]):  # b has none, and is last either way
        columns["BLEU-4"].click()
        assert page.texts("tbody th") == clicks
    columns["run"].click()
    assert page.texts("tbody th") == ["a", "b", "c"]
    columns["run"].click()
    assert page.texts("tbody th") == ["c", "b", "a"]

    links = {link.text: link.get_attribute("href") for link in page.all("tbody a")}
    assert {name: Path(unquote(urlsplit(url).path)) for name, url in links.items()} == {
        "a": tmp_path / "a run" / "report.html",
        "b": tmp_path / "b:#?" / "report.html",
    }
    page.all("tbody a")[0].click()
    page.wait_for(lambda: page.texts("h1") == ["b"])


@browser
def test_leaderboard_puts_runs_side_by_side(tmp_path: Path, page: Page) -> None:
    three_runs(tmp_path)
    assert main([str(tmp_path)]) == 0
    page.open(tmp_path / "leaderboard.html")
    assert page.texts(".legend li") == ["a", "b"]
    page.wait_for(lambda: page.files() == ["far", "middle", "near"])  # the largest difference
    card = page.all(".card")[0]
    assert [run.text for run in card.find_elements(By.CSS_SELECTOR, ".run h4")] == ["a", "b"]
    captions = [each.text for each in card.find_elements(By.CSS_SELECTOR, ".caption")]
    assert captions == ["a says far", "b says far"]
    assert len(card.find_elements(By.CSS_SELECTOR, "img")) == 1
    page.hover(card.find_element(By.CSS_SELECTOR, ".word"))
    assert page.attention_shown()
    page.choose("run", "b")
    page.wait_for(lambda: page.files() == ["far", "near", "middle"])
    page.choose("direction", "lowest first")
    page.wait_for(lambda: page.files() == ["middle", "near", "far"])


def test_leaderboard_has_objects_where_a_run_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_runs(tmp_path)
    assert main([str(tmp_path)]) == 0
    columns = ["captions right", "peak in box", "attention in box", "box share"]
    printed = capsys.readouterr().out
    assert all(column in printed for column in columns)

    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    header, a, b = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith(("| run", "| a", "| b"))
    )
    cells = dict(zip(header, a, strict=True))
    assert [cells[column].strip("*") for column in columns] == ["93.0", "72.0", "44.0", "11.5"]
    assert "*" not in cells["box share"]  # a large box is nobody's merit
    assert dict(zip(header, b, strict=True))["peak in box"] == "-"

    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[0][column] for column in columns] == ["0.93", "0.72", "0.44", "0.115"]
    assert [rows[1][column] for column in columns] == [""] * 4


def test_leaderboard_leaves_a_damaged_report_out_of_its_gallery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three_runs(tmp_path)
    damaged = tmp_path / "b:#?" / "report.html"
    damaged.write_text(damaged.read_text().partition("gallery-data")[0])
    assert main([str(tmp_path)]) == 0
    assert str(damaged) in caplog.text
    assert read_report_data(tmp_path / "leaderboard.html")["runs"] == ["a"]


def test_leaderboards_gallery_shows_the_best_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred reports would fill the memory, and nobody compares so many captions."""
    three_runs(tmp_path)
    page = tmp_path / "leaderboard.html"
    assert main([str(tmp_path)]) == 0
    assert len(read_report_data(page)["runs"]) == 2
    assert "best are shown" not in page.read_text()
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        best = next(csv.DictReader(file))["run"]
    monkeypatch.setattr(report, "MAX_COMPARED_RUNS", 1)
    assert main([str(tmp_path)]) == 0
    assert read_report_data(page)["runs"] == [best]
    assert "Of the runs that have a report, the 1 best are shown." in page.read_text()


def test_leaderboards_gallery_stays_within_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_runs(tmp_path)
    page = tmp_path / "leaderboard.html"
    assert main([str(tmp_path)]) == 0
    images = read_report_data(page)["images"]
    assert len(images) == 3
    assert "3 images, which the reports of these runs share." in page.read_text()
    monkeypatch.setattr(report, "MAX_GALLERY_BYTES", int(2.5 * len(json.dumps(images)) / 3))
    assert main([str(tmp_path)]) == 0
    assert {image["id"] for image in read_report_data(page)["images"]} == {"far", "near"}
    assert "2 of the 3 images that the reports of these runs share" in page.read_text()
