"""Errors on data sets that no paper of this package reports."""
