"""Writes ``shipped_captions.json``: captions of the checkpoint from which the model was exported.

    python tests/pretrained/make_shipped_captions.py RUN/checkpoints/best.ckpt

They are of photographs of ``../shared/flickr8k/mini``'s dev split and of matplotlib's portrait,
decoded in single precision. Run it when the model of the package is replaced.
"""

import json
import sys
from pathlib import Path

from captioning.apps.caption import caption_files
from captioning.captioner import Captioner
from captioning.data.corpus import read_corpus
from captioning.decoding import Beam, Greedy

if __name__ == "__main__":
    root = Path(__file__).parents[2]
    captioner = Captioner.load_from_checkpoint(sys.argv[1])
    images = read_corpus(root.parent / "shared" / "flickr8k" / "mini", name="flickr8k").split("dev")
    files = [image.path for image in images[:6]]
    import matplotlib

    files.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    found = {
        name: {
            each.path.name: each.caption
            for batch, _ in caption_files(captioner, files, decoding, precision="fp32")
            for each in batch
        }
        for name, decoding in (("greedy", Greedy()), ("beam", Beam()))
    }
    target = Path(__file__).with_name("shipped_captions.json")
    target.write_text(json.dumps(found, indent=2) + "\n")
