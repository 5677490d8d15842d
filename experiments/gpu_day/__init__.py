"""Everything that is due on a GPU, in steps that go on where the last run stopped."""
