"""Prompts answered on one image: from what a user says to a label map."""
