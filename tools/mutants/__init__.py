"""Faults to be planted, and the program that plants them."""
