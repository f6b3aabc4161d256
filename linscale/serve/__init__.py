"""The server: a trained model behind the OpenAI API, and its states by name."""
