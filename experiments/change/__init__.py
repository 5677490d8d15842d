"""The change probe: does a memory give a thing's newer state, or an older one that it saw, too?"""
