"""Searching a method's settings with a budget of trials, on held-out training images (``dcbench tune``).

A search is known by what it tries, and each of its trials by a row: a killed search goes on, and computes nothing
twice. No trial has test images.
"""
