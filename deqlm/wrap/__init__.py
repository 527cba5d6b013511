"""How a user's layer and inputs become rows, and what happens when rows fail."""
