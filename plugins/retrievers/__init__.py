"""The built-in retrievers and floors."""
