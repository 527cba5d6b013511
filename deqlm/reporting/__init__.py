"""Tables, plot style, the environment and progress, for everything that reports."""
