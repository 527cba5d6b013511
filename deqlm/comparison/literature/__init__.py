"""The problems of the literature, solved by everybody: `deqlm compare --suite literature`."""
