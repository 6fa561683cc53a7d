"""Errors and likelihoods, beside those that papers report."""
