"""Rewards: what says how good an answer is, and what is done with it."""
