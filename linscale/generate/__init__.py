"""Generation: text from a model, one token at a time."""
