"""The built-in compressors, maskers, retrievers and metrics."""
