"""Measurements, and the figures made from them. Not part of the installed package."""
