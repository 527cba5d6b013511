"""The promises of mixers."""
