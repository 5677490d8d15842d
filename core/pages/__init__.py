"""Pages and pictures for people: the report of `measure`, its charts, and a masker's picture."""
