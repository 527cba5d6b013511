"""What is measured against the peers and solved of the literature, and the pages of the documentation that show it."""
