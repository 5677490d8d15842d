"""A tiny memory begun in closed form: encoder, heads and outputs by linear algebra."""
