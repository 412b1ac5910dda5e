"""SPICE's own program on the bundled Java; with a parser of our own, as CoreNLP's is in no package.

The parser of these tests takes each word for an object. SPICE is then the F1 of two sets of words,
as long as no two of them are synonyms to WordNet.
"""

import functools
import hashlib
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from captioning.metrics import spice
from captioning.metrics.spice import CORENLP, find_corenlp, spice_scores
from captioning.support.errors import CaptioningError

NLP = "edu.stanford.nlp"
CLASSES = {
    "util.CoreMap": "public interface CoreMap { Object get(Class<?> key); }",
    "util.MapFactory": """public class MapFactory<K, V> {
        public static <K, V> MapFactory<K, V> hashMapFactory() { return new MapFactory<>(); } }""",
    "graph.DirectedMultiGraph": """public class DirectedMultiGraph<V, E> {
        java.util.Set<V> vertices = new java.util.LinkedHashSet<>();
        public DirectedMultiGraph(edu.stanford.nlp.util.MapFactory a,
                                  edu.stanford.nlp.util.MapFactory b) {}
        public boolean addVertex(V vertex) { return vertices.add(vertex); }
        public java.util.List<E> getAllEdges() { return new java.util.ArrayList<>(); }
        public java.util.Set<V> getAllVertices() { return vertices; } }""",
    "ling.CoreAnnotations": """public class CoreAnnotations {
        public static class SentencesAnnotation {} }""",
    "ling.IndexedWord": """public class IndexedWord {
        String word;
        public IndexedWord(String word) { this.word = word; }
        public String lemma() { return word; } }""",
    "semgraph.SemanticGraphCoreAnnotations": """public class SemanticGraphCoreAnnotations {
        public static class CollapsedCCProcessedDependenciesAnnotation {} }""",
    "semgraph.SemanticGraph": """public class SemanticGraph {
        public String text;
        public SemanticGraph(String text) { this.text = text; } }""",
    "scenegraph.SemanticGraphEnhancer": """import edu.stanford.nlp.semgraph.SemanticGraph;
        public class SemanticGraphEnhancer {
        public static void processQuanftificationModifiers(SemanticGraph graph) {}
        public static void collapseCompounds(SemanticGraph graph) {}
        public static void collapseParticles(SemanticGraph graph) {}
        public static void resolvePronouns(SemanticGraph graph) {} }""",
    "semgraph.semgrex.SemgrexPattern": """public class SemgrexPattern {
        String pattern;
        public static SemgrexPattern compile(String pattern) {
            SemgrexPattern found = new SemgrexPattern();
            found.pattern = pattern;
            return found; }
        public SemgrexMatcher matcher(edu.stanford.nlp.semgraph.SemanticGraph graph) {
            boolean nouns = pattern.equals("{tag:/NNP?S?/}=word");
            return new SemgrexMatcher(nouns ? graph.text : ""); } }""",
    "semgraph.semgrex.SemgrexMatcher": """import edu.stanford.nlp.ling.IndexedWord;
        public class SemgrexMatcher {
        java.util.Scanner words;
        public SemgrexMatcher(String text) { words = new java.util.Scanner(text); }
        public boolean find() { return words.hasNext(); }
        public boolean findNextMatchingNode() { return false; }
        public IndexedWord getNode(String name) { return new IndexedWord(words.next()); } }""",
    "pipeline.Annotation": """import edu.stanford.nlp.semgraph.SemanticGraph;
        public class Annotation implements edu.stanford.nlp.util.CoreMap {
        String text;
        public Annotation(String text) { this.text = text; }
        public Object get(Class<?> key) {
            return key.getSimpleName().startsWith("Sentences")
                ? java.util.List.of(this) : new SemanticGraph(text); } }""",
    "pipeline.StanfordCoreNLP": """public class StanfordCoreNLP {
        public StanfordCoreNLP(java.util.Properties properties) { STATEMENT }
        public void annotate(Iterable<Annotation> annotations) {} }""",
}

CAPTIONS = ["dog grass", "", "dog dog ball", "zebra"]
REFERENCES = [
    ["dog grass"],
    ["man hat"],
    ["dog", "ball frisbee", "ball tree"],
    ["giraffe", "é 漢字 zebra"],
]


def f1(caption: str, references: list[str]) -> float:
    said, true = set(caption.split()), {word for text in references for word in text.split()}
    return 2 * len(said & true) / (len(said) + len(true))


EXPECTED = [f1(*pair) for pair in zip(CAPTIONS, REFERENCES, strict=True)]


def compiled(folder: Path, sources: dict[str, str], *options: str) -> Path:
    javac = shutil.which("javac")
    if javac is None:
        pytest.skip("there is no javac on the PATH")
    for name, source in sources.items():
        path = folder / f"{name}.java"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    files = [str(path) for path in folder.rglob("*.java")]
    command = [javac, "--release", "11", *options, "-d", str(folder / "classes"), *files]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "classes"


def corenlp(folder: Path, statement: str) -> Path:
    """A folder of what stands for CoreNLP; it does ``statement`` where that loads its models."""
    sources = {
        f"{NLP}.{name}".replace(".", "/"): f"package {NLP}.{name.rpartition('.')[0]};\n{source}"
        for name, source in CLASSES.items()
    }
    sources = {name: text.replace("STATEMENT", statement) for name, text in sources.items()}
    classes = compiled(folder / "sources", sources)
    with zipfile.ZipFile(folder / CORENLP[0], "w") as jar:
        for path in classes.rglob("*.class"):
            jar.write(path, path.relative_to(classes))
    zipfile.ZipFile(folder / CORENLP[1], "w").close()
    return folder


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corenlp(tmp_path_factory.mktemp("corenlp: a b"), "")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary: files"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_program_scores_and_leaves_nothing_but_its_cache(
    parser: Path, temporary: Path, cache: Path, tmp_path: Path
) -> None:
    installed = {path: path.stat().st_mtime_ns for path in spice._PROGRAM.parent.rglob("*")}
    assert spice_scores(CAPTIONS, REFERENCES, parser) == pytest.approx(EXPECTED, abs=1e-15)
    # What was parsed is not parsed again, also for other captions.
    stuck = corenlp(tmp_path / "stuck", 'throw new IllegalStateException("loaded");')
    again = ["ball tree", "dog", "dog grass", ""]
    found = spice_scores(again, REFERENCES, stuck)
    assert found == pytest.approx([*map(f1, again, REFERENCES)], abs=1e-15)
    assert not list(temporary.iterdir())
    assert {path.parent for path in files_of(cache)} == {cache / "spice"}
    assert installed == {path: path.stat().st_mtime_ns for path in spice._PROGRAM.parent.rglob("*")}


def test_captions_of_any_length_and_a_cache_that_cannot_be_made(parser: Path, cache: Path) -> None:
    long = "dog " * 2500
    assert spice_scores([long], [["dog", long + "cat"]], parser) == [pytest.approx(2 / 3)]
    shutil.rmtree(cache)
    cache.write_text("no folder")
    assert spice_scores(["dog"], [["dog cat"]], parser) == [pytest.approx(2 / 3)]


def test_what_goes_wrong_in_the_program_is_one_sentence(
    tmp_path: Path, temporary: Path, cache: Path
) -> None:
    broken = corenlp(tmp_path / "broken", 'throw new IllegalStateException("no such model");')
    with pytest.raises(CaptioningError, match=r"no such model.*spice_memory=8G") as caught:
        spice_scores(["dog"], [["dog"]], broken)
    assert "\n" not in str(caught.value)
    # Its memory is bounded.
    hungry = corenlp(tmp_path / "hungry", "long[] taken = new long[1 << 26];")
    with pytest.raises(CaptioningError, match=r"OutOfMemoryError: Java heap space.*=64M"):
        spice_scores(["dog"], [["dog"]], hungry, memory="64M")
    assert not list(temporary.iterdir())


def test_the_engine_is_what_its_source_says(tmp_path: Path) -> None:
    source = spice._ENGINE.with_name("JsonEngine.java")
    classes = compiled(tmp_path, {"JsonEngine": source.read_text()}, "-g:none")
    with zipfile.ZipFile(spice._ENGINE) as jar:
        shipped = jar.read("JsonEngine.class")
    made = (classes / "JsonEngine.class").read_bytes()
    assert hashlib.sha256(shipped).digest() == hashlib.sha256(made).digest()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "stanford.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as zipped:
        for name in ("readme.txt", *CORENLP):
            zipped.writestr(f"stanford/{name}", f"{name} " * 100_000)
    return path


@pytest.fixture
def site(archive: Path) -> Iterator[str]:
    """The address of a server of the archive's folder."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    serve = functools.partial(Handler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_corenlp_is_downloaded_once(site: str, archive: Path, cache: Path) -> None:
    folder = find_corenlp(url=f"{site}/stanford.zip")
    assert folder.is_relative_to(cache)
    assert {path.name for path in folder.iterdir()} == {".lock", *CORENLP}
    for name in CORENLP:
        assert (folder / name).read_text() == f"{name} " * 100_000
    archive.unlink()
    assert find_corenlp(url=f"{site}/stanford.zip") == folder


def test_no_corenlp_says_what_to_do(site: str, archive: Path, cache: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for url, reason, given in [
        (f"{site}/gone.zip", "File not found", content),
        (f"{site}/stanford.zip", "zip file", content[: len(content) // 2]),
        ("http://127.0.0.1:9/stanford.zip", "refused", content),
    ]:
        archive.write_bytes(given)
        with pytest.raises(CaptioningError, match="spice_files=FOLDER") as caught:
            find_corenlp(url=url)
        assert url in str(caught.value)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert [path.name for path in (cache / "corenlp-3.6.0").iterdir()] == [".lock"]
    (tmp_path / CORENLP[0]).touch()
    with pytest.raises(CaptioningError, match=f"spice_files={tmp_path}: {CORENLP[1]} not found"):
        find_corenlp(str(tmp_path))
    (tmp_path / CORENLP[1]).touch()
    assert find_corenlp(str(tmp_path)) == tmp_path
