"""Adapters: a model in, a model out. Hugging Face folders are read and written here."""
