"""Image captioning with attention: a PyTorch Lightning research codebase."""
