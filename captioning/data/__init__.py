"""Images, captions and splits as they lie on disk, and everything between them and a batch."""
