"""Solves as compiled programs: in this process, and as files that run without Python."""
