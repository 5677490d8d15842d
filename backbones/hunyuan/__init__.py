"""HunyuanVideo as a backbone, FramePack's variant of it, and the real class with small numbers."""
