"""Models for use outside this package."""
