"""Caption photographs: ``python caption.py ckpt=PATH images=FILE|FOLDER|GLOB``."""

from captioning.scripts.caption import main

if __name__ == "__main__":
    main()
