"""Prompts: what a user points at, where it is read from, and how it is drawn from a target."""
