"""Takes: long videos made section by section from a storyboard, each segment remembering."""
