"""The one fixed-point loop and what it is made of."""
