"""The feature store: the encoder's grid of every image, extracted once and kept on disk."""
