"""Verses in two languages as examples of translation, with whole books held out."""
