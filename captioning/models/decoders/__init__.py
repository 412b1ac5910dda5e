"""Caption decoders: the base contract and one file for each model."""
