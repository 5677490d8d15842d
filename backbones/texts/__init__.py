"""Text encoders: prompts to embeddings."""
