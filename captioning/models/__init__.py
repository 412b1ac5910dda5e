"""The networks, as plain torch: image encoders, attention and decoders."""
