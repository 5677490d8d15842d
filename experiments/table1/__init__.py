"""The paper's Table 1: every way to carry history, trained and measured under one equal budget."""
