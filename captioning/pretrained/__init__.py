"""Models to use and to give away: a folder of safetensors, config and vocabulary.

The folders in this package are models that come with it.
"""
