"""Channels, neurons and heads that do nothing taken out of a network, and what that is worth."""
