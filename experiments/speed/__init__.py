"""How fast, and how much memory: measured, never asserted by a test."""
