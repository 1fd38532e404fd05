"""Duplicates, and a split that none of them crosses."""
