"""Score a checkpoint, ``python eval.py ckpt=PATH data.root=DIR split=test``, or any captions."""

from captioning.scripts.eval import main

if __name__ == "__main__":
    main()
