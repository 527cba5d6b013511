"""The promises of gradient methods."""
