"""The built-in backbones with their codecs and text encoders."""
