"""The user's model for viewers: an interactive server, and a page in the browser."""
