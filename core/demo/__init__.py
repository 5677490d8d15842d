"""The demo: a built-in clip that needs no download, and what is told with it."""
