# Show, Attend and Tell in a notebook; each `# %%` starts a cell.
# `python docs/notebook.py DIR` runs the cells as a script, on the Flickr8k in DIR.

# %% Train, and score the test split
import sys

import pytorch_lightning as pl

from captioning import Beam, CaptionDataModule, Captioner

pl.seed_everything(0)
data = CaptionDataModule(root=sys.argv[1])
model = Captioner.for_data(data, model="attn_lstm", attention_dim=512, dropout=0.5)
trainer = pl.Trainer(max_epochs=9, gradient_clip_val=2.0)
trainer.fit(model, datamodule=data)
trainer.test(model, datamodule=data)

# %% Caption some images with the trained model, and see where it looked
batch = next(iter(data.test_dataloader()))
hypotheses = model(batch.images[:2], Beam(beam_size=5))
best = hypotheses[0][0]
print(batch.ids[0], "-", model.vocabulary.decode(best.tokens))
print("attention weights:", tuple(best.attention.shape), "words x locations")

# %% Save a checkpoint, and load the captioner from that file alone
trainer.save_checkpoint("captioner.ckpt")
again = Captioner.load_from_checkpoint("captioner.ckpt")

# %% Caption a picture of your own: a PIL image of any mode, or the path of a file
caption = again.caption(data.images("test")[0].path)
print(caption.text, f"(log-probability {caption.score:.1f})")
print("attention maps:", None if caption.attention is None else caption.attention.shape)
