"""The layouts that people keep videos and captions in, each read by one file."""
