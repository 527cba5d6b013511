"""Small dense systems, GMRES and line searches, batched over rows."""
