"""Folders for model hubs, their cards, and how strangers load them."""
