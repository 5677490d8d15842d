"""Quality of what a memory gives back, and the report that shows it."""
