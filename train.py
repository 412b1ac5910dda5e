"""Train and score a captioner: ``python train.py model=attn_lstm data.root=DIR``."""

from captioning.scripts.train import main

if __name__ == "__main__":
    main()
