"""Other people's models and files: the authors', upstream checkpoints, explicit models made implicit."""
