"""What all DiTs share: base class, attention with memory, caches, rotary tables, enhancers."""
